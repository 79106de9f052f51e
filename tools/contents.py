"""Make the contents of the book, and its links: `python tools/contents.py`. Run twice, it changes
nothing.

The list is the tree: nbs/ has a folder for each part, and a part's notebooks are read in the order
of their numbers. From it come the map of the book in every notebook that holds the two marks
below, the last cell of each chapter (previous, contents, next), and a link for each "chapter NN"
and each "reference notebook `name`".
"""

import json
import os
import re
import sys

from notebooks import CHAPTERS, NBS, NOTEBOOKS, cells, source

PARTS = {
    "1_problem": "The problem",
    "2_hypergradient": "The hypergradient",
    "3_training": "Training",
    "4_keras": "With Keras",
    "5_does_it_pay": "Does it pay?",
    "6_literature": "The literature, re-run",
    "reference": "Reference: how the rest is built",
}
BEGIN, END = "<!-- map of the book -->", "<!-- end of the map -->"
FOOTER = "<!-- previous, contents, next -->"
INDEX = NBS / "index.ipynb"
NUMBERED = [path for path in CHAPTERS if path.stem[:2].isdigit()]
BY_NUMBER = {path.stem[:2]: path for path in NUMBERED}
BY_NAME = {path.stem: path for path in CHAPTERS if path.parent.name == "reference"}


def title(path):
    return re.match(r"# (.+)", source(cells(path)[0]))[1]


def label(path):
    return f"{path.stem[:2]} {title(path)}" if path in NUMBERED else title(path)


def link(path, start):
    return os.path.relpath(path, start.parent).replace(os.sep, "/")


def book_map(start):
    "The contents, a line for each part, as seen from one notebook."
    text = []
    for folder, name in PARTS.items():
        paths = [path for path in CHAPTERS if path.parent.name == folder]
        if paths:
            number = f"{folder[0]}. " if folder[0].isdigit() else ""
            links = " · ".join(f"[{label(path)}]({link(path, start)})" for path in paths)
            text.append(f"- **{number}{name}**: {links}")
    return "\n".join([BEGIN, "", *text, "", END])


def footer(path):
    "Where to go from a chapter."
    place = NUMBERED.index(path)
    around = [
        f"[← {label(NUMBERED[place - 1])}]({link(NUMBERED[place - 1], path)})" if place else "",
        f"[contents]({link(INDEX, path)})",
        f"[{label(NUMBERED[place + 1])} →]({link(NUMBERED[place + 1], path)})"
        if place + 1 < len(NUMBERED)
        else "",
    ]
    return f"{FOOTER}\n" + " · ".join(filter(None, around))


def linked(text, path):
    "The text, in which each chapter and each reference notebook that is named is a link."

    def chapters(found):
        word, numbers = found[1], re.sub(r"\[(\d\d)\]\([^)]*\)", r"\1", found[2])
        if unknown := [n for n in re.findall(r"\d\d", numbers) if n not in BY_NUMBER]:
            raise SystemExit(f"{path.relative_to(NBS)}: there is no chapter {', '.join(unknown)}")
        to = {n: link(BY_NUMBER[n], path) for n in re.findall(r"\d\d", numbers)}
        return f"{word} " + re.sub(r"\d\d", lambda n: f"[{n[0]}]({to[n[0]]})", numbers)

    def notebook(found):
        if found[2] not in BY_NAME:
            raise SystemExit(f"{path.relative_to(NBS)}: there is no reference notebook {found[2]}")
        return f"{found[1]} [`{found[2]}`]({link(BY_NAME[found[2]], path)})"

    one = r"(?:\[\d\d\]\([^)]*\)|\d\d)"
    joined = rf"{one}(?:(?:, | and | or | to |, and ){one})*(?!\d)"
    text = re.sub(rf"\b([Cc]hapters?)\s({joined})", chapters, text)
    return re.sub(r"\b([Rr]eference notebooks?) \[?`(\w+)`\]?(?:\([^)]*\))?", notebook, text)


def with_contents(path):
    "The notebook at a path, with its map, its footer and its links."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kept = [cell for cell in notebook["cells"] if not source(cell).startswith(FOOTER)]
    for cell in kept:
        if cell["cell_type"] != "markdown":
            continue
        text = source(cell)
        if BEGIN in text:
            before, rest = text.split(BEGIN)
            text = before + book_map(path) + rest.split(END)[1]
        cell["source"] = linked(text, path).splitlines(keepends=True)
    if path in NUMBERED:
        lines = footer(path).splitlines(keepends=True)
        kept.append({"cell_type": "markdown", "id": "contents", "metadata": {}, "source": lines})
    notebook["cells"] = kept
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main():
    stale = [path for path in NOTEBOOKS if with_contents(path) != path.read_text(encoding="utf-8")]
    for path in stale:
        if "--check" not in sys.argv:
            path.write_text(with_contents(path), encoding="utf-8")
    for path in stale:
        print(path.relative_to(NBS))
    return "--check" in sys.argv and bool(stale)


if __name__ == "__main__":
    sys.exit(main())
