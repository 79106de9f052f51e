"""Where things are, and what the tools and the tests read from a notebook."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
EXECUTED = ROOT / "executed"  # made by execute.py
PACKAGE = ROOT / "distillnb"
NOTEBOOKS = sorted(
    path
    for path in NBS.rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts)
)
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]


def name_of(path):
    "A notebook's path in nbs/, without the ending: how the tests call it."
    return path.relative_to(NBS).with_suffix("").as_posix()


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
    return [
        line
        for line in source(cell).splitlines()
        if line.strip() and not re.match(r"\s*#\s*\|", line)
    ]


def tree(cell):
    "The syntax of a cell; lines that only IPython understands are dropped."
    return ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))


def module(path):
    "The module whose home a notebook is, or None."
    text = "\n".join(map(source, code(path)))
    found = re.search(r"^\s*#\s*\|\s*default_exp:?\s+([\w.]+)", text, re.M)
    return found and found[1]


def executed(path):
    "The copy of a notebook that execute.py has run, if it passed and is of the notebook as it is."
    copied = EXECUTED / path.relative_to(NBS)
    again = "`make test` (or python tools/execute.py) makes one"
    assert copied.exists(), f"no run of {name_of(path)} that passed: {again}"
    same = [source(cell) for cell in cells(copied)] == [source(cell) for cell in cells(path)]
    assert same, f"the last run is of an older {name_of(path)}: {again}"
    return copied
