"""The architecture, tested: one direction, one home for each thing, code in step with the notebooks, an import that costs nobody anything."""
import ast, configparser, importlib.metadata, json, os, re, subprocess, sys
from pathlib import Path

import pytest
sys.path.insert(0, str(Path(__file__).parent))
from conftest import overdrawn
from in_step import ROOT, cells, differences, is_component, notebooks, source

NBS = [p for p in notebooks() if ".ipynb_checkpoints" not in p.parts]
COMPONENTS = [p for p in NBS if is_component(p)]
JOBS = [p for p in NBS if not is_component(p) and p.name != "index.ipynb"]
MODULES = sorted(p for p in (ROOT/"stprompt").glob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
INI = configparser.ConfigParser(interpolation=None); INI.read(ROOT/"settings.ini")
SETTINGS = INI["DEFAULT"]
name_of = lambda path: path.relative_to(ROOT).as_posix()
each = lambda paths: pytest.mark.parametrize("path", paths, ids=name_of)


def numbers():
    "{module: its notebook's number}, such as '01' or '01b'."
    return {p.stem.split("_", 1)[1]: p.stem.split("_", 1)[0] for p in COMPONENTS}

def imports(code):
    "Every module imported anywhere in the code, in full (nbdev writes ours as relative ones)."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["stprompt" if node.level else "", node.module]))
            found |= {f"stprompt.{alias.name}" for alias in node.names} if base == "stprompt" else {base}
    return found - {"stprompt.__version__"}

def upward(module, code, number):
    "Modules of ours that `module` imports although they do not come before it."
    used = {name.split(".")[1] for name in imports(code) if name.startswith("stprompt.")}
    return sorted(name for name in used if name not in number or number[name] >= number[module])


# ---- one direction ----------------------------------------------------------------------------------------------
def test_a_module_is_its_notebook():
    assert sorted(numbers()) == sorted(p.stem for p in MODULES)
    for path in COMPONENTS:
        named = [source(c).split("\n")[0] for c in cells(path) if source(c).startswith("#| default_exp")]
        assert named == [f"#| default_exp {path.stem.split('_', 1)[1]}"], path.name
        assert re.fullmatch(r"\d\d[a-z]?_\w+", path.stem), path.name

@each(MODULES)
def test_one_direction(path):
    assert upward(path.stem, path.read_text(), numbers()) == []

@each(MODULES)
def test_one_door_to_each_library(path):
    tops = {name.split(".")[0] for name in imports(path.read_text())}
    assert "open_clip" not in tops or path.stem == "clip"
    assert "av" not in tops or path.stem == "video"
    assert "import *" not in path.read_text()

def test_the_direction_test_can_fail():
    number = {"video": "00", "datasets": "01", "benchmarks": "01b", "clip": "03"}
    assert upward("clip", "from stprompt.datasets import a\nimport stprompt.video", number) == []
    assert upward("benchmarks", "def f():\n    from stprompt.datasets import a", number) == []
    assert upward("video", "def f():\n    from .clip import a", number) == ["clip"]
    assert upward("video", "from stprompt import clip, __version__", number) == ["clip"]
    assert upward("datasets", "import stprompt.benchmarks, stprompt.datasets", number) == ["benchmarks", "datasets"]


# ---- notebooks --------------------------------------------------------------------------------------------------
def test_in_step_and_idempotent():
    assert differences(times=2) == []

def body_lines(code):
    "Lines that do something: no blank, comment, import, decorator, signature or docstring lines."
    tree, skipped, held = ast.parse(code), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)): skipped |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node.lineno] + [d.lineno for d in node.decorator_list])
            skipped |= set(range(first, node.body[0].lineno))
            if ast.get_docstring(node) is not None: skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for node in tree.body: held |= set(range(node.lineno, node.end_lineno + 1))
    lines = code.split("\n")
    return sum(bool(lines[n - 1].split("#")[0].strip()) for n in held - skipped)

def function_lines(code):
    "{function: lines from its first body line to its last, docstring and comments left out}."
    functions = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {f.name: body_lines(ast.get_source_segment(code, f)) for f in functions if "\n" in ast.get_source_segment(code, f)}

def exports(path):
    "The exported cells of a notebook, as (number, code)."
    return [(n, source(c)) for n, c in enumerate(cells(path)) if c["cell_type"] == "code" and re.match(r"#\|\s*exports?\b", source(c))]

@each(COMPONENTS)
def test_cells_and_functions_are_short(path):
    assert {n: body_lines(code) for n, code in exports(path) if body_lines(code) > 20} == {}, "export cells of more than 20 body lines"
    long = {name: lines for _, code in exports(path) for name, lines in function_lines(code).items() if lines > 25}
    assert long == {}, "functions of more than 25 lines"

def test_the_line_count_can_fail():
    code = "import os\n\n@cache\ndef f(a,\n      b):\n    'doc'\n    # why\n    x = 1\n\n    return (x,\n            a)\nC = 3"
    assert body_lines(code) == 4 and function_lines(code) == {"f": 3}

@each(COMPONENTS)
def test_a_component_is_a_text(path):
    "Title and claim, committed pictures or results, a check beside the code."
    found = cells(path)
    title = next(source(c) for c in found if c["cell_type"] == "markdown")
    assert re.match(r"# \S.*\n+> \S", title), "a title and a one-line claim"
    assert any("where we differ" in source(c).lower() for c in found)
    assert any(c.get("outputs") for c in found), "components are committed with their pictures"
    checks = sum(bool(re.search(r"\b(assert|test_\w+\(|ExceptionExpected)", source(c))) for c in found if c["cell_type"] == "code")
    assert checks >= len(exports(path)) / 3, f"{checks} cells check {len(exports(path))} exported ones"
    assert not any(o["output_type"] == "error" for c in found for o in c.get("outputs", ())), "an error is shown"
    assert path.stat().st_size < 400_000

@each(NBS)
def test_no_machine_in_a_notebook(path):
    assert machine_paths(path.read_text(encoding="utf-8")) == []

def job_faults(found):
    "What a job's cells have that only a component may."
    code = [source(c) for c in found if c["cell_type"] == "code"]
    plain = "\n".join(line for cell in code for line in cell.split("\n") if not re.match(r"\s*[%!]", line))
    kinds = {ast.FunctionDef: "def", ast.AsyncFunctionDef: "def", ast.ClassDef: "class", ast.If: "if"}
    faults = [kinds[type(n)] for n in ast.walk(ast.parse(plain)) if type(n) in kinds]
    tagged = [c for c in found if "parameters" in c.get("metadata", {}).get("tags", ())]
    if len(tagged) != 1: faults.append(f"{len(tagged)} parameters cells")
    if any(c.get("outputs") or c.get("execution_count") for c in found): faults.append("output")
    if not any(re.search(r"^\s*-?\s*skip_exec:\s*true", source(c), re.M) for c in found if c["cell_type"] != "code"): faults.append("no skip_exec")
    return faults

@each(JOBS)
def test_a_job_imports_runs_records(path):
    assert job_faults(cells(path)) == []

def test_the_job_test_can_fail():
    cell = lambda kind, text, **rest: dict(cell_type=kind, source=[text], metadata={}, **rest)
    bad = [cell("markdown", "# Train"), cell("code", "%matplotlib inline\ndef f(): pass\nif 1: class_ = 2", outputs=[1], execution_count=1)]
    assert sorted(job_faults(bad)) == ["0 parameters cells", "def", "if", "no skip_exec", "output"]


# ---- nothing of this machine ------------------------------------------------------------------------------------
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|tmp|work|mnt|var/folders|private)/[^\s\"'<>)]+|[A-Z]:\\\\?Users\\\\?\w+")

def machine_paths(text):
    "Absolute paths of somebody's machine; pictures in base64 do not count."
    return MACHINE.findall(re.sub(r"[A-Za-z0-9+/=\\n]{200,}", "", text))

def test_no_machine_in_results():
    for path in (ROOT/"results").rglob("*"):
        if path.suffix in (".json", ".md", ".ipynb", ".html", ".csv", ".txt", ".svg"): assert machine_paths(path.read_text(encoding="utf-8")) == [], path

def test_the_machine_test_can_fail():
    assert machine_paths('"root": "/home/ann/clips"') and machine_paths("File '/tmp/x/y.py'") and machine_paths(r"C:\Users\ann")
    assert not machine_paths("see https://example.org/home/x and ../shared/data or ~/.cache/stprompt and a/tmp/b")


# ---- requirements have one home ---------------------------------------------------------------------------------
IMPORT_NAMES = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "open_clip_torch": "open_clip"}
IN_A_NOTEBOOK = {"IPython"}                                                         # used only where a kernel has it loaded already

def required(key):
    "The import names of one list of settings.ini."
    names = [re.split(r"[<>=!~\[]", r)[0] for r in SETTINGS[key].split()]
    return {IMPORT_NAMES.get(n, n).replace("-", "_") for n in names}

def test_the_library_imports_what_it_requires():
    used = {name.split(".")[0] for path in MODULES for name in imports(path.read_text())} - set(sys.stdlib_module_names) - {"stprompt"}
    assert used - required("requirements") <= IN_A_NOTEBOOK, "imported, but not in settings.ini"

@each(MODULES)
def test_python_3_10(path):
    "Nothing that came with 3.11 or later: syntax, and the names one reaches for."
    code = path.read_text()
    ast.parse(code, feature_version=(3, 10))
    assert not re.findall(r"\b(tomllib|StrEnum|datetime\.UTC|from datetime import .*\bUTC|contextlib\.chdir|ExceptionGroup|itertools\.batched|typing import .*\b(Self|override|Unpack))\b", code)

def test_settings_is_the_one_home():
    others = [p.name for pattern in ("requirements*", "setup.cfg", "Pipfile*", "poetry.lock", "tox.ini") for p in ROOT.glob(pattern)]
    assert others == []
    assert "dependencies" not in (ROOT/"pyproject.toml").read_text()
    pip = re.findall(r"^\s+- (.+)$", (ROOT/"environment.yml").read_text(), re.M)
    assert [line for line in pip if not line.startswith(("python", "pip"))] == ["-e .[dev]"]
    for path in [ROOT/"Makefile", ROOT/".ci"/"run", *NBS]:
        installs = re.findall(r"pip install[^\n\"]*", path.read_text(encoding="utf-8"))
        assert all(re.search(r"(\.|stprompt)['\"]?(\[dev\])?", i) for i in installs), (path, installs)
    assert (ROOT/"setup.py").read_text().count(">=") == 1                            # python_requires, whose number is settings.ini's too

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
    def create_module(self, spec): raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module): pass
sys.meta_path.insert(0, Wall())
for name in sys.argv[2].split(","): importlib.import_module(name)
"""

def test_import_is_silent_and_needs_no_tools():
    tools = required("dev_requirements") | {"IPython", "jupyter", "jupyter_client", "jupyter_core", "notebook", "nbformat"}
    names = ["stprompt", *(f"stprompt.{p.stem}" for p in MODULES)]
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:stprompt", "-c", IMPORT_ALL, ",".join(tools - required("requirements")), ",".join(names)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""

def test_import_of_the_package_is_light():
    "`import stprompt` alone must not wait for torch."
    code = "import sys, stprompt; print(sorted({'torch', 'open_clip', 'cv2', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "[]"

def test_no_to_markdown():
    "pandas' to_markdown needs tabulate, a tool of ours and not of the user's."
    assert [p.name for p in MODULES if ".to_markdown(" in p.read_text()] == []


# ---- skips are counted ------------------------------------------------------------------------------------------
def test_skips_are_counted():
    allowed = {r"\.\./shared": 2, "GPU": 1}
    assert overdrawn(["clips are not here (../shared/data)"] * 2 + ["no GPU"], allowed) == []
    assert overdrawn(["clips are not here (../shared/data)"] * 3, allowed) == ["clips are not here (../shared/data)"]
    assert overdrawn(["flaky today"], allowed) == ["flaky today"]
