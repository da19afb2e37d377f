"""The architecture, tested: one direction, one home for each thing, notebooks in step, light imports."""

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import overdrawn
from in_step import ROOT, differences, is_component, notebooks
from rules import attached, body_lines, cells, function_lines, is_export, parse, shown, source, too_long

NBS = [path for path in notebooks() if ".ipynb_checkpoints" not in path.parts]
COMPONENTS = [path for path in NBS if is_component(path)]
STORY = ROOT/"nbs"/"how_it_works.ipynb"     # draws as it goes, and is committed with its pictures
JOBS = [path for path in NBS if not is_component(path) and path.name not in ("index.ipynb", STORY.name)]
NO_ROOM = ("__init__.py", "__main__.py", "_modidx.py")
MODULES = sorted(path for path in (ROOT/"stprompt").glob("*.py") if path.name not in NO_ROOM)
INI = configparser.ConfigParser(interpolation=None)
INI.read(ROOT/"settings.ini")
SETTINGS = INI["DEFAULT"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=name_of)


def places():
    "{module: its notebook's place in the listing}."
    return {path.stem.split("_", 1)[1]: place for place, path in enumerate(COMPONENTS)}


def imports(code):
    "Every module imported anywhere in the code, in full (nbdev writes ours as relative ones)."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["stprompt" if node.level else "", node.module]))
            found |= {f"stprompt.{alias.name}" for alias in node.names} if base == "stprompt" else {base}
    return found - {"stprompt.__version__"}


def upward(module, code, place):
    "Modules of ours that `module` imports although `ls nbs` does not print them above it."
    used = {name.split(".")[1] for name in imports(code) if name.startswith("stprompt.")}
    return sorted(name for name in used if name not in place or place[name] >= place[module])


# ---- one direction -------------------------------------------------------------------------------
def test_a_module_is_its_notebook():
    assert sorted(places()) == sorted(path.stem for path in MODULES)
    for path in COMPONENTS:
        named = [source(c).split("\n")[0] for c in cells(path) if source(c).startswith("#| default_exp")]
        assert named == [f"#| default_exp {path.stem.split('_', 1)[1]}"], path.name
        assert re.fullmatch(r"\d\d[a-z]?_\w+", path.stem), path.name


@each(MODULES)
def test_one_direction(path):
    assert upward(path.stem, path.read_text(), places()) == []


@each(MODULES)
def test_one_door_to_each_library(path):
    tops = {name.split(".")[0] for name in imports(path.read_text())}
    assert "open_clip" not in tops or path.stem == "clip"
    assert "av" not in tops or path.stem == "video"
    assert "import *" not in path.read_text()


def test_the_direction_test_can_fail():
    place = {"files": 0, "video": 1, "datasets": 2, "benchmarks": 3, "clip": 4}
    assert upward("clip", "from stprompt.datasets import a\nimport stprompt.video", place) == []
    assert upward("benchmarks", "def f():\n    from stprompt.datasets import a", place) == []
    assert upward("video", "def f():\n    from .clip import a", place) == ["clip"]
    assert upward("video", "from stprompt import clip, __version__", place) == ["clip"]
    assert upward("datasets", "import stprompt.benchmarks, stprompt.datasets", place) == ["benchmarks",
                                                                                          "datasets"]


# ---- one home ------------------------------------------------------------------------------------
def public_names(code):
    "Functions, classes and constants of a module that have no underscore."
    found = set()
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else ()
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def doubles(codes):
    "{name: modules} of public names that several modules define."
    homes = {}
    for module, code in codes.items():
        for name in public_names(code): homes.setdefault(name, []).append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_two_things_of_one_name_do_not_exist():
    assert doubles({path.stem: path.read_text() for path in MODULES}) == {}


def test_the_double_test_can_fail():
    assert doubles({"a": "def f(): pass\n_x = 1", "b": "f = 1\n_x = 2"}) == {"f": ["a", "b"]}


def untyped(code):
    "Public functions and methods without a type on a parameter or on what they return."
    tree, found = ast.parse(code), []
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    homes = [("", tree.body)] + [(f"{node.name}.", node.body) for node in classes]
    functions = [(home, node) for home, body in homes for node in body if isinstance(node, ast.FunctionDef)]
    for home, node in functions:
        if node.name.startswith("_") and node.name != "__init__": continue
        takes = node.args
        every = [*takes.posonlyargs, *takes.args, *takes.kwonlyargs, takes.vararg, takes.kwarg]
        bare = [a.arg for a in every if a and a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None: found.append(f"{home}{node.name}({', '.join(bare)})")
    return found


@each(MODULES)
def test_public_signatures_are_typed(path):
    assert untyped(path.read_text()) == []


def stray_strings(code):
    "Lines of strings after a docstring's first: they look like a docstring and are thrown away."
    nodes = ast.walk(ast.parse(code))
    bodies = [node.body for node in nodes if isinstance(getattr(node, "body", None), list)]
    text = lambda node: isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
    return [node.lineno for body in bodies for node in body[1:] if text(node)]


@each([*MODULES, *(ROOT/"tests").glob("*.py")])
def test_a_docstring_is_whole(path):
    assert stray_strings(path.read_text()) == []


def test_the_type_test_can_fail():
    assert untyped("def f(a, b: int) -> int: pass\ndef _g(a): pass\nclass C:\n    def m(self): pass") == [
        "f(a)",
        "C.m()",
    ]


@each([path for path in MODULES if path.stem != "ministreet"])
def test_a_module_is_read_in_ten_minutes(path):
    assert len(path.read_text().splitlines()) <= 600


# ---- notebooks -----------------------------------------------------------------------------------
def test_in_step_and_idempotent():
    assert differences(times=2) == []


@each(COMPONENTS)
def test_cells_are_short_and_classes_whole(path):
    faults = {n: too_long(source(c)) + attached(source(c)) for n,
              c in enumerate(cells(path)) if is_export(c)}
    assert {n: found for n, found in faults.items() if found} == {}


def test_parts_of_a_cell_are_shown_where_they_stand():
    "85 % of the exported cells with a function or class, over all component notebooks."
    found = {path.name: shown(cells(path)) for path in COMPONENTS}
    good, missed = sum(one[0] for one in found.values()), sum(len(one[1]) for one in found.values())
    assert good / (good + missed) >= .85, {name: one[1] for name, one in found.items() if one[1]}


def test_the_cell_tests_can_fail():
    code = ("import os\n\n@cache\ndef f(a,\n      b):\n    'doc'\n    # why\n    x = 1\n\n"
            "    return (x,\n            a)\nC = 3")
    assert body_lines(code) == 4 and function_lines(code) == {"f": 3}
    assert too_long("\n".join(f"x{n} = 1" for n in range(31))) == ["cell of 31 lines"]
    assert attached("for f in (a, b): setattr(Detector, f.__name__, f)") == ["setattr"]
    assert attached("Detector.run, x = run, 1\nobject.__new__(Run)") == ["Detector.run", "object.__new__"]
    assert attached("class A:\n    def f(self): self.x = 1") == []
    cell = lambda text: {"cell_type": "code", "source": [text]}
    found = [cell("#| export\ndef f(): pass"), cell("#| export\ndef g(): pass"), cell("assert g()")]
    assert shown(found) == (1, [["f"]])


@each(COMPONENTS)
def test_a_component_is_a_text(path):
    "Title and claim, committed pictures or results, a check beside the code."
    found = cells(path)
    title = next(source(c) for c in found if c["cell_type"] == "markdown")
    assert re.match(r"# \S.*\n+> \S", title), "a title and a one-line claim"
    assert any("where we differ" in source(c).lower() for c in found)
    assert any(c.get("outputs") for c in found), "components are committed with their pictures"
    code = [c for c in found if c["cell_type"] == "code"]
    checks = sum(bool(re.search(r"\b(assert|test_\w+\(|ExceptionExpected)", source(c))) for c in code)
    exported = sum(map(is_export, found))
    assert checks >= exported / 3, f"{checks} cells check {exported} exported ones"
    assert not any(o["output_type"] == "error" for c in found for o
                   in c.get("outputs", ())), "an error is shown"
    assert path.stat().st_size < 400_000


@each(NBS)
def test_no_machine_in_a_notebook(path):
    assert machine_paths(path.read_text(encoding="utf-8")) == []


def job_faults(found):
    "What a job's cells have that only a component may."
    code = [source(c) for c in found if c["cell_type"] == "code"]
    kinds = {ast.FunctionDef: "def", ast.AsyncFunctionDef: "def", ast.ClassDef: "class", ast.If: "if"}
    faults = [kinds[type(n)] for n in ast.walk(parse("\n".join(code))) if type(n) in kinds]
    tagged = [c for c in found if "parameters" in c.get("metadata", {}).get("tags", ())]
    if len(tagged) != 1: faults.append(f"{len(tagged)} parameters cells")
    if any(c.get("outputs") or c.get("execution_count") for c in found): faults.append("output")
    skips = [n for n, c in enumerate(found) if c["cell_type"] != "code" and "skip_exec: true" in source(c)]
    if skips != [len(found) - 1] or found[-1]["cell_type"] != "raw":
        faults.append("skip_exec is not the last cell")
    return faults


@each(JOBS)
def test_a_job_imports_runs_records(path):
    assert job_faults(cells(path)) == []


def test_the_story_has_its_pictures():
    assert not {"0 parameters cells", "skip_exec is not the last cell"} & set(job_faults(cells(STORY)))
    outputs = [out for cell in cells(STORY) for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 8
    assert STORY.stat().st_size < 4_000_000


def test_the_job_test_can_fail():
    cell = lambda kind, text, **rest: {"cell_type": kind, "source": [text], "metadata": {}, **rest}
    code = "%matplotlib inline\ndef f(): pass\nif 1: class_ = 2"
    bad = [cell("markdown", "# Train"), cell("code", code, outputs=[1], execution_count=1)]
    assert sorted(job_faults(bad)) == ["0 parameters cells", "def", "if", "output",
                                       "skip_exec is not the last cell"]


def test_ruff_is_silent():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "nbs", "tests", "docs", "setup.py"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_readme_fits_on_its_pages():
    assert len((ROOT/"README.md").read_text(encoding="utf-8").splitlines()) <= 120


# ---- words ---------------------------------------------------------------------------------------
def text_of(path):
    "What a person reads of a notebook or a page."
    return "\n".join(map(source,
                         cells(path))) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


JARGON = re.compile(
    r"\b(guinea pigs?|planted|FIELD|SeedRun|TrainRun|DetectRun|PretrainRun|24_jobs|stprompt\.jobs)\b"
)


@each([*NBS, ROOT/"README.md", ROOT/"CONTRIBUTING.md"])
def test_no_jargon_and_nothing_that_is_not_there(path):
    assert JARGON.findall(text_of(path)) == []


@each([*NBS, ROOT/"README.md", ROOT/"CONTRIBUTING.md"])
def test_rooms_that_are_named_exist(path):
    named = set(re.findall(r"`(\d\d[a-z]?_\w+?)(?:\.ipynb)?`", text_of(path)))
    assert named - {one.stem for one in NBS} == set()


# ---- nothing of this machine ---------------------------------------------------------------------
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|tmp|work|mnt|var/folders|private)/[^\s\"'<>)]+"
                     r"|[A-Z]:\\\\?Users\\\\?\w+")


def machine_paths(text):
    "Absolute paths of somebody's machine; pictures in base64 do not count."
    return MACHINE.findall(re.sub(r"[A-Za-z0-9+/=\\n]{200,}", "", text))


def test_no_machine_in_results():
    for path in (ROOT/"results").rglob("*"):
        if path.suffix in (".json", ".md", ".ipynb", ".html", ".csv", ".txt", ".svg"):
            assert machine_paths(path.read_text(encoding="utf-8")) == [], path


def test_the_machine_test_can_fail():
    for text in ('"root": "/home/ann/clips"', "File '/tmp/x/y.py'", r"C:\Users\ann"):
        assert machine_paths(text)
    harmless = "see https://example.org/home/x and ../shared/data or ~/.cache/stprompt and a/tmp/b"
    assert machine_paths(harmless) == []


# ---- requirements have one home ------------------------------------------------------------------
IMPORT_NAMES = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "open_clip_torch": "open_clip"}
IN_A_NOTEBOOK = {"IPython"}  # used only where a kernel has it loaded already


def required(key):
    "The import names of one list of settings.ini."
    names = [re.split(r"[<>=!~\[]", r)[0] for r in SETTINGS[key].split()]
    return {IMPORT_NAMES.get(n, n).replace("-", "_") for n in names}


def test_the_library_imports_what_it_requires():
    used = {name.split(".")[0] for path in MODULES for name in imports(path.read_text())}
    used -= {"stprompt", *sys.stdlib_module_names}
    known = required("requirements") | required("teacher_requirements")
    assert used - known <= IN_A_NOTEBOOK, "imported, but not in settings.ini"


@each(MODULES)
def test_python_3_10(path):
    "Nothing that came with 3.11 or later: syntax, and the names one reaches for."
    code = path.read_text()
    ast.parse(code, feature_version=(3, 10))
    assert not re.findall(
        r"\b(tomllib|StrEnum|datetime\.UTC|from datetime import .*\bUTC|contextlib\.chdir|ExceptionGroup|"
        r"itertools\.batched|typing import .*\b(Self|override|Unpack))\b",
        code,
    )


def test_settings_is_the_one_home():
    others = [p.name for pattern in ("requirements*", "setup.cfg", "Pipfile*", "poetry.lock", "tox.ini")
              for p in ROOT.glob(pattern)]
    assert others == []
    assert "dependencies" not in (ROOT/"pyproject.toml").read_text()
    pip = re.findall(r"^\s+- (.+)$", (ROOT/"environment.yml").read_text(), re.M)
    assert [line for line in pip if not line.startswith(("python", "pip"))] == ["-e .[dev]"]
    for path in [ROOT/"Makefile", ROOT/".ci"/"run", *NBS]:
        installs = re.findall(r"pip install[^\n\"]*", path.read_text(encoding="utf-8"))
        assert all(re.search(r"(\.|stprompt)['\"]?(\[dev\])?", i) for i in installs), (path, installs)
    assert (ROOT/"setup.py").read_text().count(">=") == 1     # python_requires, of settings.ini


def test_version():
    import stprompt
    assert stprompt.__version__ == SETTINGS["version"]
    try: assert importlib.metadata.version("stprompt") == SETTINGS["version"]
    except importlib.metadata.PackageNotFoundError: pass                             # run from the checkout

IMPORT_ALL = """
import sys, importlib
from importlib.machinery import ModuleSpec
blocked = set(sys.argv[1].split(","))
class Wall:
    "Blocked names can be looked for, as torch does, but not imported."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked: return ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module): pass
sys.meta_path.insert(0, Wall())
for name in sys.argv[2].split(","): importlib.import_module(name)
"""


def test_import_is_silent_and_needs_no_tools():
    tools = required("dev_requirements") | {"IPython", "jupyter", "jupyter_client", "jupyter_core",
                                            "notebook", "nbformat"}
    names = ["stprompt", *(f"stprompt.{p.stem}" for p in MODULES)]
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:stprompt", "-c", IMPORT_ALL,
                           ",".join(tools - required("requirements")), ",".join(names)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""


def test_import_of_the_package_is_light():
    "`import stprompt` alone must not wait for torch."
    code = "import sys, stprompt; print(sorted({'torch', 'open_clip', 'cv2', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True).stdout.strip() == "[]"


def test_no_to_markdown():
    "pandas' to_markdown needs tabulate, a tool of ours and not of the user's."
    assert [p.name for p in MODULES if ".to_markdown(" in p.read_text()] == []


# ---- skips are counted ---------------------------------------------------------------------------
def test_skips_are_counted():
    allowed = {r"\.\./shared": 2, "GPU": 1}
    assert overdrawn(["clips are not here (../shared/data)"] * 2 + ["no GPU"], allowed) == []
    reason = "clips are not here (../shared/data)"
    assert overdrawn([reason] * 3, allowed) == [reason]
    assert overdrawn(["flaky today"], allowed) == ["flaky today"]
