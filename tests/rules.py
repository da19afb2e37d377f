"""The rules of a notebook's cells, as functions of their code; test_house.py applies them.

    python tests/rules.py NOTEBOOK ...
"""

import ast
import json
import re
import sys
from pathlib import Path


def cells(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def parse(code):
    "The code's tree; lines of IPython's own are left out."
    return ast.parse("\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in code.split("\n")))


def is_export(cell):
    return cell["cell_type"] == "code" and bool(re.match(r"#\|\s*exports?\b", source(cell)))


# ---- short ---------------------------------------------------------------------------------------
def body_lines(code):
    "Lines that do something: no blank, comment, import, decorator, signature or docstring lines."
    tree, skipped, held = ast.parse(code), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node.lineno] + [d.lineno for d in node.decorator_list])
            skipped |= set(range(first, node.body[0].lineno))
            if ast.get_docstring(node) is not None:
                skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for node in tree.body: held |= set(range(node.lineno, node.end_lineno + 1))
    lines = code.split("\n")
    return sum(bool(lines[n - 1].split("#")[0].strip()) for n in held - skipped)


def function_lines(code):
    "{function: its body lines, docstring and comments left out}."
    functions = [n for n in ast.walk(ast.parse(code))
                 if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    texts = {f.name: ast.get_source_segment(code, f) for f in functions}
    return {name: body_lines(text) for name, text in texts.items() if "\n" in text}


def too_long(code):
    "What is too long in an exported cell: over 30 body lines, 60 with a class; a function over 25."
    most = 60 if any(isinstance(n, ast.ClassDef) for n in ast.parse(code).body) else 30
    found = [f"cell of {body_lines(code)} lines"] if body_lines(code) > most else []
    return found + [f"{name} of {lines} lines" for name, lines in function_lines(code).items() if lines > 25]


# ---- whole ---------------------------------------------------------------------------------------
def attached(code):
    "Methods that a class gets from outside itself, and objects made past their class."
    found = []
    for node in ast.walk(parse(code)):
        targets = node.targets if isinstance(node, ast.Assign) else ()
        parts = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple)
                                                   else [target])]
        found += [ast.unparse(t) for t in parts
                  if isinstance(t, ast.Attribute) and isinstance(t.value,
                                                                 ast.Name) and t.value.id[:1].isupper()]
        call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if call == "object.__new__" or call == "setattr" and ast.unparse(node.args[0])[:1].isupper():
            found.append(call)
        if isinstance(node, ast.FunctionDef):
            found += [d for d in map(ast.unparse, node.decorator_list) if "patch" in d]
    return found


# ---- shown ---------------------------------------------------------------------------------------
def defined(code):
    "Functions and classes of a cell."
    return {node.name for node in parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def used(code):
    "Every name that a cell mentions."
    tree = list(ast.walk(parse(code)))
    return {n.id for n in tree if isinstance(n, ast.Name)} | {n.attr for n in tree
                                                              if isinstance(n, ast.Attribute)}


def shown(found):
    """(how many exported cells with a function or class are used within the next two code cells,
    what the others define)."""
    code, good, missed = [c for c in found if c["cell_type"] == "code"], 0, []
    for n, cell in enumerate(code):
        names = defined(source(cell)) if is_export(cell) else set()
        near = [used(source(c)) for c in code[n + 1:n + 3] if not is_export(c)]
        if names and any(names & one for one in near): good += 1
        elif names: missed.append(sorted(names))
    return good, missed


if __name__ == "__main__":
    wrong = 0
    for path in sys.argv[1:]:
        for n, cell in enumerate(cells(path)):
            if not is_export(cell): continue
            faults = too_long(source(cell)) + [f"attached: {name}" for name in attached(source(cell))]
            if faults: print(f"{path}, cell {n}: {'; '.join(faults)}")
            wrong += len(faults)
        good, missed = shown(cells(path))
        print(f"{path}: {good} exported cells are shown, {len(missed)} not: {missed}")
        wrong += len(missed) > .15 * (good + len(missed))
    sys.exit(wrong > 0)
