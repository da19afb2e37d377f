"""All that Sphinx has to be told for `make site`: which files are pages, in which order, and how they look.

Nothing is written for the site alone. The front page is README.md; notebooks come as `ls nbs` prints them,
under their own titles; a page of results is made of what lies in its folder. The repository's root is the
source folder, so that the links of its files lead to pages.
"""
import configparser
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"0": "Video to features", "1": "Features to scores", "2": "Scores to boxes to numbers",
          "3": "Neighbours", "4": "The bundled world"}     # by a component's first digit


# ---- which pages, in which order -----------------------------------------------------------------
def is_job(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any("parameters" in cell["metadata"].get("tags", ()) for cell in found)

def heading(path):
    "What a notebook of nbs/ stands under in the navigation."
    if path.parent.name != "nbs": return path.parent.name.capitalize()
    if path.name[0].isdigit(): return STAGES.get(path.name[0], f"{path.name[0]}x")
    return "Jobs" if is_job(path) else "To read first"

@cache
def navigation():
    "{heading: pages}, notebooks in the order of `ls`; index.ipynb is README.md."
    books = [path for path in sorted((ROOT/"nbs").rglob("*.ipynb"))
             if path != ROOT/"nbs"/"index.ipynb" and ".ipynb_checkpoints" not in path.parts]
    under = {path: heading(path) for path in books}
    order = ["To read first", *STAGES.values(), *sorted(set(under.values()) - {"Jobs"}), "Jobs"]
    chapters = {name: [path for path in books if under[path] == name] for name in dict.fromkeys(order)}
    chapters |= {"Results": [ROOT/"results"/"README.md"],
                 "What ships with the package": sorted((ROOT/"stprompt"/"assets").glob("*/README.md")),
                 "Project": [ROOT/"CONTRIBUTING.md", ROOT/"CHANGELOG.md"]}
    return {name: pages for name, pages in chapters.items() if pages}

@cache
def experiments():
    "{page: executed notebooks, model card} of each folder of results; page: table.md, notes.md or notebook."
    files = [path for path in sorted((ROOT/"results").rglob("*")) if ".ipynb_checkpoints" not in path.parts]
    found = {}
    for folder in dict.fromkeys(path.parent for path in files):
        books = [path for path in files if path.parent == folder and path.suffix == ".ipynb"]
        pages = [path for path in (folder/"table.md", folder/"notes.md") if path in files] + books
        beside = [path for path in (*books, folder/"model"/"README.md") if path in files]
        if pages: found[pages[0]] = [path for path in beside if path != pages[0]]
    return found


# ---- what Sphinx reads of them -------------------------------------------------------------------
def address(path): return "/" + path.relative_to(ROOT).with_suffix("").as_posix()

def toctree(pages, *options):
    "The directive that hangs pages below the one it stands on."
    return "\n".join(["", "", "```{toctree}", *options, "", *map(address, pages), "```", ""])

def results_page(page, beside):
    "One experiment: table.md, notes.md, every picture, and what hangs below it."
    folder, text = page.parent, page.read_text(encoding="utf-8")
    if not text.startswith("# "):
        saved = folder/"metrics.json"
        known = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
        text = f"# {known.get('experiment', folder.name)}\n\n{text}"
    notes = folder/"notes.md"
    more = [notes.read_text(encoding="utf-8")] if notes.is_file() and notes != page else []
    pictures = [f"![{path.stem}]({path.name})" for path in sorted(folder.glob("*.png"))]
    below = toctree(beside, ":caption: Beside it", ":maxdepth: 1") if beside else ""
    return "\n\n".join([text, *more, *pictures]) + below

def shown_notebook(text):
    "A notebook without the cells that are for nbdev alone."
    text = re.sub(r"\]\(#[^)]*\)", lambda link: link[0].lower(), text)     # Jupyter's anchors have capitals
    book = json.loads(text)
    hidden = re.compile(r"#\|\s*(hide|default_exp)\b")
    book["cells"] = [cell for cell in book["cells"]
                     if cell["cell_type"] != "raw" and not hidden.match("".join(cell["source"]))]
    return json.dumps(book)

def placed(path, text):
    "An executed notebook or a model card with the folder in its title: there are many of one name."
    place = path.parent.relative_to(ROOT/"results").as_posix()
    return re.sub(r'(^|")(# [^"\\\n]+)', rf"\1\2 ({place})", text, count=1, flags=re.M)

def read(app, name, content):     # Sphinx's event: content[0] is what will be parsed
    path = Path(app.env.doc2path(name))
    if path.suffix == ".ipynb": content[0] = shown_notebook(content[0])
    elif path in experiments(): content[0] = results_page(path, experiments()[path])
    if any(path in beside for beside in experiments().values()): content[0] = placed(path, content[0])
    if path == ROOT/"README.md":
        chapters = navigation().items()
        content[0] += "".join(toctree(pages, ":hidden:", f":caption: {name}") for name, pages in chapters)
    if path == ROOT/"results"/"README.md":     # a folder is no page: the model's card stands for it
        text = re.sub(r"(\]\([^)]+/model)\)", r"\1/README.md)", content[0])
        content[0] = text + toctree(experiments(), ":hidden:")

def link_notebooks(app, tree):     # Sphinx's event: a page was parsed
    "Makes links of `40_miniclip` and `train.ipynb` in a text."
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    books = {path.name: path for pages in navigation().values() for path in pages if path.suffix == ".ipynb"}
    books |= {path.stem: path for path in books.values() if path.name[0].isdigit()}
    for literal in list(tree.findall(nodes.literal)):
        path = books.get(literal.astext().removeprefix("nbs/"))
        if path is None or isinstance(literal.parent, (nodes.reference, nodes.title, pending_xref)): continue
        where = {"refdomain": "std", "reftype": "doc", "refdoc": app.env.docname, "reftarget": address(path)}
        literal.replace_self(pending_xref("", literal.deepcopy(), refexplicit=True, refwarn=True, **where))

def first_page(app, failed):     # Sphinx's event: all is written
    to_readme = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">'
    if not failed: (Path(app.outdir)/"index.html").write_text(to_readme)

def setup(app):
    app.connect("source-read", read)
    app.connect("doctree-read", link_notebooks)
    app.connect("build-finished", first_page)
    # a search quotes the pages it finds by fetching them, which browsers refuse to pages opened from a disk
    app.add_js_file(None, body="DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol != 'file:'")


# ---- Sphinx's own settings -----------------------------------------------------------------------
settings = configparser.ConfigParser(interpolation=None)
settings.read(ROOT/"settings.ini", encoding="utf-8")
project, version = settings["DEFAULT"]["lib_name"], settings["DEFAULT"]["version"]
root_doc = "README"
include_patterns = [f"{root_doc}.md", *(address(path)[1:] + path.suffix for pages in (
    *navigation().values(), experiments(), *experiments().values()) for path in pages)]
exclude_patterns = [path.name for path in ROOT.iterdir()     # not looked into
                    if path.is_dir() and path.name not in ("nbs", "results", "stprompt")]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
suppress_warnings = ["myst.header"]     # from H1 to H3, as notebooks do
nb_execution_mode = "off"               # a page shows what is committed
nb_merge_streams = True                # progress bars in one block
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme, html_title = "furo", f"{project} {version}"
html_theme_options = {"light_css_variables": {"code-font-size": "12.5px"}}
html_copy_source = html_show_sphinx = html_show_copyright = False
html_static_path, html_css_files = ["site.css"], ["site.css"]
# equations without network: MathJax 3 in one file that needs no fonts; the package only carries it
carrier = importlib.util.find_spec("sphinx-mathjax-offline")
mathjax_path = "tex-svg.js"
if carrier: html_static_path.append(str(Path(carrier.origin).parent/"static"/"mathjax"/mathjax_path))
