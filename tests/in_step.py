"""Are the exported modules and the notebooks in step, and the notebooks clean?

    python tests/in_step.py [--execute]

Everything is exported and cleaned again in a temporary copy and compared, so a check changes nothing.
With --execute, the component notebooks are run in place, so that they show their pictures, and cleaned.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def notebooks(): return sorted((ROOT/"nbs").rglob("*.ipynb"))

def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]

def source(cell): return "".join(cell["source"])

def is_component(path):
    return any(source(c).startswith("#| default_exp") for c in cells(path) if c["cell_type"] == "code")


def tool(name, *args, cwd):
    "Run one of nbdev's commands in a folder; its output only when it fails."
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    env.pop("MPLBACKEND", None)  # it would keep the pictures out of the notebooks
    done = subprocess.run([str(BIN/name), *map(str, args)], cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode: sys.exit(f"{name} failed:\n{done.stdout}{done.stderr}")

def copied(folder):
    "A copy of what export and clean read: settings, notebooks, modules."
    shutil.copy(ROOT/"settings.ini", folder)
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "assets", "_modidx.py")
    for name in ("nbs", "stprompt"): shutil.copytree(ROOT/name, folder/name, ignore=skip)
    return folder

def differences(times=1):
    "Names of modules and notebooks that export and clean would change (doing both `times` times)."
    with tempfile.TemporaryDirectory() as temporary:
        copy = copied(Path(temporary))
        for module in (copy/"stprompt").glob("*.py"):
            if not module.name.startswith("__"): module.unlink()     # a module without notebook shows, too
        for _ in range(times):
            tool("nbdev_export", cwd=copy)
            tool("nbdev_clean", cwd=copy)
        made = {p.relative_to(copy): p for p in [*copy.glob("stprompt/*.py"), *copy.glob("nbs/**/*.ipynb")]
                if p.name != "_modidx.py"}
        here = {p.relative_to(ROOT): p for p in [*(ROOT/"stprompt").glob("*.py"), *notebooks()]
                if p.name != "_modidx.py" and ".ipynb_checkpoints" not in p.parts}
        return sorted(str(n) for n in made.keys() | here.keys()
                      if n not in made or n not in here or made[n].read_bytes() != here[n].read_bytes())

def execute():
    "Run the component notebooks in place and clean them."
    for path in filter(is_component, notebooks()):
        print(path.name, flush=True)
        tool("jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace",
             "--ExecutePreprocessor.timeout=1200", path, cwd=ROOT)
        tool("nbdev_clean", "--fname", path, cwd=ROOT)

if __name__ == "__main__":
    if "--execute" in sys.argv: execute()
    wrong = differences()
    if wrong:
        sys.exit(f"not in step: {', '.join(wrong)}\n"
                 "run `make export` (modules) and `.venv/bin/nbdev_clean` (notebooks), "
                 "then look at `git diff`")
    print(f"{len(notebooks())} notebooks and their modules are in step")
