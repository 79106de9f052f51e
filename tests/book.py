"""Where things are, and what the tests read from a notebook."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
EXECUTED = ROOT / "executed"  # made by tests/execute.py
PACKAGE = ROOT / "distillnb"
NOTEBOOKS = sorted(path for path in NBS.glob("*.ipynb") if not path.name.startswith((".", "_")))
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def code(path):
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def flags(cell):
    "The nbdev directives of a cell: export, hide, slow, ..."
    return set(re.findall(r"^\s*#\s*\|\s*(\w+)", source(cell), re.M))


def lines(cell):
    "Lines of code and comment, without blank ones and directives."
    return [line for line in source(cell).splitlines() if line.strip() and not re.match(r"\s*#\s*\|", line)]


def tree(cell):
    "The syntax of a cell; lines that only IPython understands are dropped."
    return ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))


def module(path):
    "The module that a notebook exports to, or None."
    found = re.search(r"^\s*#\s*\|\s*default_exp:?\s+(\w+)", "\n".join(map(source, code(path))), re.M)
    return found and found[1]


def executed(path):
    "The copy of a notebook that tests/execute.py has run, if it passed and is of the notebook as it is now."
    copied = EXECUTED / path.name
    assert copied.exists(), f"no run of {path.name} that passed: `make test` (or python tests/execute.py) makes one"
    same = [source(cell) for cell in cells(copied)] == [source(cell) for cell in cells(path)]
    assert same, f"the last run is of an older {path.name}: `make test` (or python tests/execute.py) runs it anew"
    return copied
