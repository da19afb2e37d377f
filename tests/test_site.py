"""The site: its navigation holds everything that is committed, and its pages need no network."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from in_step import ROOT, is_component, notebooks

SITE = runpy.run_path(str(ROOT/"docs"/"conf.py"))
TOOLS = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")


def books():
    "Every notebook that is a page; index.ipynb is README.md."
    here = [path for path in notebooks() if ".ipynb_checkpoints" not in path.parts]
    return [path for path in here if path != ROOT/"nbs"/"index.ipynb"]


def shown():
    return [path for pages in SITE["navigation"]().values() for path in pages]


# ---- without the tools ---------------------------------------------------------------------------
def test_every_notebook_is_in_the_navigation_once():
    pages = [path for path in shown() if path.suffix == ".ipynb"]
    assert sorted(pages) == sorted(books())
    numbered = [path for path in pages if is_component(path)]
    assert numbered == sorted(numbered), "components in the order of `ls nbs`"
    for name, chapter in SITE["navigation"]().items():
        assert len({is_component(path) for path in chapter if path.suffix == ".ipynb"}) < 2, name


def test_every_result_is_a_page():
    found = SITE["experiments"]()
    beside = {path for pages in found.values() for path in pages}
    executed = [path for path in (ROOT/"results").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    assert {*executed, *(ROOT/"results").rglob("model/README.md")} == beside | set(found) - {
        path for path in found if path.suffix == ".md"}
    folders = {path.parent for path in found}
    for name in ("table.md", "notes.md", "metrics.json"):
        assert {path.parent for path in (ROOT/"results").rglob(name)} <= folders, name
    for page, beside in found.items():
        if page.suffix == ".ipynb": continue
        text = SITE["results_page"](page, beside)
        assert text.startswith("# ") and all(f"({one.name})" in text for one in page.parent.glob("*.png"))
        assert all(one.read_text(encoding="utf-8") in text for one in page.parent.glob("notes.md"))
        assert all(SITE["address"](path) in text for path in beside)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_texts_and_notebooks_that_a_page_links_are_pages(name):
    links = re.findall(r"\]\(([^)#:]+\.(?:md|ipynb))[#)]", (ROOT/name).read_text(encoding="utf-8"))
    assert {*links} <= {*SITE["include_patterns"]}
    assert links or name != "README.md"


def test_pages_are_all_that_is_read():
    assert all((ROOT/name).is_file() for name in SITE["include_patterns"])
    assert {path.relative_to(ROOT).as_posix() for path in shown()} < set(SITE["include_patterns"])


def test_a_new_notebook_finds_its_chapter(tmp_path):
    text, job = '{"cells": []}', '{"cells": [{"metadata": {"tags": ["parameters"]}}]}'
    made = {"31_baselines": text, "70_new": text, "how_it_works": text, "train": job,
            "reproduce/table4": job}
    (tmp_path/"nbs"/"reproduce").mkdir(parents=True)
    paths = [tmp_path/"nbs"/f"{name}.ipynb" for name in made]
    for path, text in zip(paths, made.values()): path.write_text(text)
    assert list(map(SITE["heading"], paths)) == ["Neighbours", "7x", "To read first", "Jobs", "Reproduce"]


def test_cells_for_nbdev_are_not_shown():
    book = ('{"cells": [{"cell_type": "code", "source": ["#| default_exp a"]}, '
            '{"cell_type": "markdown", "source": ["# A, [there](#The-End)"]}, '
            '{"cell_type": "code", "source": ["#|hide\\n", "x"]}, '
            '{"cell_type": "code", "source": ["#| export\\n", "y"]}, '
            '{"cell_type": "raw", "source": ["---"]}]}')
    text = SITE["shown_notebook"](book)
    assert re.findall(r"default_exp|# A|#the-end|hide|export|---", text) == ["# A", "#the-end", "export"]
    page = ROOT/"results"/"here"/"train"/"train.ipynb"
    assert "# A, [there](#the-end) (here/train)\"" in SITE["placed"](page, text)
    card = "---\na: b\n---\n# Card{}\n\n# Two"
    assert SITE["placed"](page, card.format("")) == card.format(" (here/train)")


# ---- with them -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site, made as `make site` makes it."
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing: pytest.skip(f"{', '.join(missing)} not here: `make site` installs the site's tools")
    folder = tmp_path_factory.mktemp("site")
    made = ["-d", folder/"doctrees", ".", folder/"html"]
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", "-c", "docs", *made], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "a link that leads nowhere, a page that cannot be read"
    return folder/"html"


def faults(page):
    "What a page loads from elsewhere, and its local links that lead to no file."
    text = page.read_text(encoding="utf-8")
    source = r'<(?:script|img|iframe)\b[^>]*?\ssrc="([^"]+)"|<link\b[^>]*?\shref="([^"]+)"'
    loaded = ["".join(pair) for pair in re.findall(source, text)]
    links = re.findall(r'<a\b[^>]*?\shref="([^"#?]+)', text)
    local = [one for one in {*loaded, *links} if not re.match(r"[a-z]+:|//|#", one)]
    gone = [one for one in local if not (page.parent/unquote(re.split("[#?]", one)[0])).is_file()]
    return sorted(gone) + [one for one in loaded if re.match(r"(https?:)?//", one)]


def test_the_page_test_can_fail(tmp_path):
    page = tmp_path/"a.html"
    page.write_text('<a id="x" href="b.html#c">b</a> <a href="https://a.org">a</a> <a href="a.html#b">a</a>'
                    '<script src="https://cdn.org/x.js"></script> <link rel="icon" href="//cdn.org/y"/>')
    assert faults(page) == ["b.html", "https://cdn.org/x.js", "//cdn.org/y"]


def test_the_site_is_whole_and_needs_no_network(site):
    "Each page is there, each local link leads to a file, nothing is loaded from elsewhere."
    for name in SITE["include_patterns"]: assert (site/name).with_suffix(".html").is_file(), name
    assert "url=README.html" in (site/"index.html").read_text()
    assert {page.name: faults(page) for page in site.rglob("*.html") if faults(page)} == {}
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import\s+['\"]?https?:", style.read_text()), style


def test_search_equations_and_links(site):
    index = (site/"searchindex.js").read_text(encoding="utf-8")
    assert "topk_mean" in index and "bootstrap" in index.lower()
    losses = (site/"nbs"/"12_losses.html").read_text(encoding="utf-8")
    assert 'class="math' in losses and "tex-svg.js" in losses and "#| hide" not in losses
    assert (site/"_static"/"tex-svg.js").stat().st_size > 1_000_000
    assert re.search(r'href="nbs/40_miniclip.html"><span', (site/"README.html").read_text(encoding="utf-8"))
