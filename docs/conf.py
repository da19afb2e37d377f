"""Everything that Sphinx has to be told for `make site`: which files are pages, in which order, from what.

Nothing is written for the site alone. The front page is README.md; notebooks come as `ls nbs` prints them, under
their own titles; a page of results is made of the files that lie in its folder. The repository's root is the
source folder, so links between pages are those that work on the forge, too.
"""
import configparser
import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"0": "Video to features", "1": "Features to scores", "2": "Scores to boxes to numbers",
          "3": "Neighbours", "4": "The bundled world"}     # a notebook's first digit


# ---- which pages, in which order -----------------------------------------------------------------
def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]

def is_job(path):
    return any("parameters" in cell["metadata"].get("tags", ()) for cell in cells(path))

def chapter(path):     # of nbs/
    "The heading of the navigation that a notebook stands under."
    if path.parent.name != "nbs": return path.parent.name.capitalize()
    if path.name[0].isdigit(): return STAGES.get(path.name[0], f"{path.name[0]}x")
    return "Jobs" if is_job(path) else "To read first"

def experiments():
    "{page of an experiment: its executed notebooks}; the page is table.md, or notes.md where no table is."
    folders = [path.parent for path in sorted((ROOT/"results").rglob("metrics.json"))]
    pages = {next(filter(Path.is_file, (folder/"table.md", folder/"notes.md")), None): folder for folder in folders}
    return {page: sorted(folder.glob("*.ipynb")) for page, folder in pages.items() if page}

def navigation(root=ROOT):
    "{heading: pages}, in the order of `ls`; index.ipynb is README.md."
    books = [path for path in sorted((root/"nbs").rglob("*.ipynb"))
             if path != root/"nbs"/"index.ipynb" and ".ipynb_checkpoints" not in path.parts]
    order = ["To read first", *STAGES.values()]
    place = lambda name: order.index(name) if name in order else len(order) + (name == "Jobs")
    chapters = {name: [path for path in books if chapter(path) == name]
                for name in sorted(set(map(chapter, books)), key=lambda name: (place(name), name))}
    return chapters | {"Results": [root/"results"/"README.md"],
                       "Project": [root/"CONTRIBUTING.md", root/"CHANGELOG.md"]}


# ---- what Sphinx reads of them -------------------------------------------------------------------
def toctree(paths, caption="", visible=False):     # pages, absolute
    "The directive that hangs pages below the one it stands on."
    lines = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * (not visible)
    pages = [f"/{path.relative_to(ROOT).with_suffix('').as_posix()}" for path in paths]
    return "\n".join(["", "", "```{toctree}", *lines, "", *pages, "```", ""])

def results_page(page, books):     # table.md or notes.md; executed notebooks
    "The table, the notes, the pictures and the executed notebooks of one experiment."
    folder, text = page.parent, page.read_text(encoding="utf-8")
    if not text.startswith("# "):
        text = f"# {json.loads((folder/'metrics.json').read_text(encoding='utf-8'))['experiment']}\n\n{text}"
    notes = folder/"notes.md"
    if notes.is_file() and notes != page: text += "\n\n" + notes.read_text(encoding="utf-8")
    pictures = [f"![{path.stem}]({path.name})" for path in sorted(folder.glob("*.png"))]
    return "\n\n".join([text, *pictures]) + (toctree(books, "Executed notebook", visible=True) if books else "")

def shown_notebook(text):
    "A notebook's text without the cells that are for nbdev and the tests alone."
    book = json.loads(text)
    hidden = re.compile(r"#\|\s*(hide|default_exp)\b")
    book["cells"] = [cell for cell in book["cells"]
                     if cell["cell_type"] != "raw" and not hidden.match("".join(cell["source"]))]
    return json.dumps(book)

def read(app, page, content):     # Sphinx's event: content [0] may be replaced
    path = Path(app.env.doc2path(page))
    if path.suffix == ".ipynb": content[0] = shown_notebook(content[0])
    if path == ROOT/"README.md": content[0] += "".join(toctree(p, name) for name, p in navigation().items())
    if path == ROOT/"results"/"README.md": content[0] += toctree(experiments())
    if path in experiments(): content[0] = results_page(path, experiments()[path])

def link_notebooks(app, tree):     # Sphinx's event: a page that was parsed
    "Makes `40_miniclip` and `train.ipynb` in a text links to these notebooks."
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    books = {path.name: path for pages in navigation().values() for path in pages if path.suffix == ".ipynb"}
    named = books | {name[:-len(".ipynb")]: path for name, path in books.items() if name[0].isdigit()}
    for literal in list(tree.findall(nodes.literal)):
        path = named.get(literal.astext().removeprefix("nbs/"))
        if path is None or isinstance(literal.parent, (nodes.reference, nodes.title, pending_xref)): continue
        target = f"/{path.relative_to(ROOT).with_suffix('').as_posix()}"
        link = pending_xref("", literal.deepcopy(), refdomain="std", reftype="doc", reftarget=target,
                            refexplicit=True, refdoc=app.env.docname, refwarn=True)
        literal.replace_self(link)

def first_page(app, failed):
    "out/site/index.html, which leads to the README."
    if not failed: (Path(app.outdir)/"index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">')

def setup(app):
    app.connect("source-read", read)
    app.connect("doctree-read", link_notebooks)
    app.connect("build-finished", first_page)


# ---- Sphinx's own settings -----------------------------------------------------------------------
_ini = configparser.ConfigParser(interpolation=None)
_ini.read(ROOT/"settings.ini", encoding="utf-8")
project, version = _ini["DEFAULT"]["lib_name"], _ini["DEFAULT"]["version"]
_pages = [page for pages in navigation().values() for page in pages]
_pages += [page for table, books in experiments().items() for page in (table, *books)]
root_doc = "README"
include_patterns = ["README.md", *(path.relative_to(ROOT).as_posix() for path in _pages)]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("nbs", "results")]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
nb_execution_mode = "off"     # pages show what is committed
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = html_show_sphinx = html_show_copyright = False
# equations without network: one file of MathJax 3, which needs no fonts; the package is only its carrier
_carrier = importlib.util.find_spec("sphinx-mathjax-offline")
mathjax_path = "tex-svg.js"
html_static_path = ["site.css"]
if _carrier: html_static_path.append(str(Path(_carrier.origin).parent/"static"/"mathjax"/mathjax_path))
html_css_files = ["site.css"]
