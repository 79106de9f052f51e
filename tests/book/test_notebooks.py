"""The budgets of the book: short cells, much prose, everything shown, nothing leaked."""

import ast
import json
import re

import pytest
from book import NOTEBOOKS, cells, code, flags, lines, source, tree

SHOWS = re.compile(r"^\s*(assert\b|test_\w+\(|np\.testing|with expect_fail|expect_fail)", re.M)
LEAKS = {
    "a path": re.compile(r"(?<![\w.:/<])/[A-Za-z]\w*/\w|\b[A-Z]:\\|site-packages"),
    "a progress bar": re.compile(r"\r|it/s\b|s/it\b|\d+%\||━|\bms/step\b"),
    "a log line": re.compile(
        r"tensorflow/core|\b[IWE]\d{4} |\b(?:WARNING|INFO|ERROR):|\w+Warning:|^\d{4}-\d\d-\d\d \d\d:\d\d", re.M
    ),
    "a traceback": re.compile(r"\bTraceback\b"),
    "a memory address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def where(cell, text):
    "A complaint that starts with the first line of its cell."
    return f"[{next(iter(lines(cell)), source(cell)).strip()[:60]}] {text}"


def assert_none(complaints):
    complaints = list(complaints)
    assert not complaints, "\n" + "\n".join(complaints)


def texts(output):
    "Everything in an output that is not a picture."
    data = output.get("data", {})
    yield from (
        "".join(part) for part in [output.get("text", ""), *(data[k] for k in data if not k.startswith("image/"))]
    )


def pictures(cell):
    return [kind for output in cell.get("outputs", []) for kind in output.get("data", {}) if kind.startswith("image/")]


def definitions(cell, kinds=(ast.FunctionDef, ast.AsyncFunctionDef)):
    return [node for node in ast.walk(tree(cell)) if isinstance(node, kinds)]


def exports(notebook):
    return [cell for cell in code(notebook) if "export" in flags(cell)]


def test_number_of_cells(notebook):
    n = len(cells(notebook))
    assert notebook.stem == "index" or n >= 25, f"{n} cells: a chapter has 25 to 50; take smaller steps"
    assert n <= 50, f"{n} cells: a chapter has 25 to 50; split it or leave something out"


def test_first_cell(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S", source(first)), (
        "the first cell must be a markdown '# Title'"
    )
    assert re.search(r"^> \S", source(first), re.M), "the first cell needs a '> ' line with the chapter's promise"


def test_words_per_line_of_code(notebook):
    words = sum(len(source(cell).split()) for cell in cells(notebook) if cell["cell_type"] == "markdown")
    rows = sum(len(lines(cell)) for cell in code(notebook))
    assert words >= 4 * rows, (
        f"{words} words for {rows} lines of code: write {4 * rows - words} more words or less code"
    )


def test_length_of_cells(notebook):
    long = [cell for cell in code(notebook) if len(lines(cell)) > 25]
    assert_none(where(cell, f"{len(lines(cell))} lines: at most 25, split the cell") for cell in long)


def test_length_of_functions(notebook):
    for cell in exports(notebook):
        for node in definitions(cell):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            n = node.end_lineno - first + 1
            assert n <= 30, where(cell, f"{node.name} has {n} lines: at most 30, take a helper out")


def test_hidden_cells(notebook):
    hidden = sum(bool(flags(cell) & {"hide", "hide_input"}) for cell in code(notebook))
    n = len(code(notebook))
    assert hidden <= n / 10, f"{hidden} of {n} code cells are hidden: at most a tenth"


def test_exports_are_shown_or_asserted(notebook):
    everything = cells(notebook)
    for i, cell in enumerate(everything):
        if "export" not in flags(cell) or not definitions(cell, (ast.FunctionDef, ast.ClassDef)):
            continue
        near = [c for c in everything[i + 1 : i + 8] if c["cell_type"] == "code"][:3]
        shown = any(c.get("outputs") or SHOWS.search(source(c)) for c in near)
        assert shown, where(cell, "show or assert what it does within the next three code cells")


def test_docstrings(notebook):
    for cell in exports(notebook):
        for node in definitions(cell, (ast.FunctionDef, ast.ClassDef)):
            if not node.name.startswith("_"):
                text = ast.get_docstring(node)
                assert text, where(cell, f"{node.name} needs a docstring (or a name that starts with _)")
                assert "\n" not in text.strip(), where(cell, f"the docstring of {node.name} must be one line")


def test_docments(notebook):
    def _undocumented(cell):
        rows = source(cell).splitlines()
        for node in definitions(cell, (ast.FunctionDef, ast.ClassDef)):
            if node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):  # the fields of a NamedTuple are parameters too
                found = [(field.target.id, field) for field in node.body if isinstance(field, ast.AnnAssign)]
            else:
                a = node.args
                found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                found = [(argument.arg, argument) for argument in found if argument.arg not in ("self", "cls")]
            for i, (name, place) in enumerate(found):
                comment = re.search(r"#\s*\S", rows[place.end_lineno - 1][place.end_col_offset :])
                shared = i and place.lineno == found[i - 1][1].end_lineno
                if shared or not comment:
                    yield where(cell, f"{node.name}({name}): put it on a line of its own with a '# shape, unit, range'")

    assert_none(complaint for cell in exports(notebook) for complaint in _undocumented(cell))


def test_what_it_raises_is_said(notebook):
    prose = ""  # directly above the cell
    for cell in cells(notebook):
        if cell["cell_type"] == "markdown":
            prose = source(cell)
            continue
        for node in definitions(cell) if "export" in flags(cell) else ():
            raised = [n.exc.func for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
            for name in () if node.name.startswith("_") else {getattr(error, "id", "") for error in raised}:
                told = (ast.get_docstring(node) or "") + prose
                assert name in told, where(
                    cell, f"{node.name} raises {name}: say so in its docstring or the prose above"
                )


def test_size_of_outputs(notebook):
    size = sum(len(json.dumps(output)) for cell in code(notebook) for output in cell["outputs"])
    assert size <= 150 * 1024, f"{size // 1024} KB of stored outputs: at most 150; fewer or plainer figures"


def test_outputs_are_clean(notebook):
    def _stains(cell):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield "a stored error: run `make nbs`"
            if output.get("name") == "stderr":
                yield f"something on standard error: {''.join(output['text'])[:80]!r}"
            for what, leak in LEAKS.items():
                if any(leak.search(text) for text in texts(output)):
                    yield f"{what} in an output"
        if cell["execution_count"] is not None or cell["metadata"]:
            yield "not cleaned: run nbdev-clean"
        if set(pictures(cell)) - {"image/png"}:
            yield "a picture that is not PNG: call set_matplotlib_formats('png') in a hidden cell"

    assert_none(where(cell, stain) for cell in code(notebook) for stain in _stains(cell))


def test_figures_have_alt_text(notebook):
    everything = cells(notebook)
    for cell, after in zip(everything, [*everything[1:], None], strict=True):
        if cell["cell_type"] == "code" and pictures(cell):
            told = after and after["cell_type"] == "markdown" and source(after).startswith("*Figure:")
            assert told, where(
                cell, "the next cell must be markdown that starts with '*Figure:' and says what one sees"
            )
            assert len(source(after).split()) >= 10, where(
                cell, "ten words at least for somebody who cannot see the figure"
            )


def test_house_rules(notebook):
    rules = {
        r"^\s*from .* import \*": "import names, not *",
        r"^\s*from \.": "write `from distillnb.x import y`; nbdev makes it relative",
        r"\btest_close\(": "test_close compares only the first element; use np.testing.assert_allclose",
    }
    broken = [
        (cell, cure) for cell in code(notebook) for rule, cure in rules.items() if re.search(rule, source(cell), re.M)
    ]
    assert_none(where(cell, cure) for cell, cure in broken)
