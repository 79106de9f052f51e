"""What a reader may count on in each notebook: a promise, help, clean outputs."""

import ast
import json
import re

import pytest
from notebooks import NOTEBOOKS, cells, code, flags, lines, name_of, source, tree

LEAKS = {
    "a path": re.compile(r"(?<![\w.:/<])/[A-Za-z]\w*/\w|\b[A-Z]:\\|site-packages"),
    "a progress bar": re.compile(r"\r|it/s\b|s/it\b|\d+%\||━|\bms/step\b"),
    "a log line": re.compile(
        r"tensorflow/core|\b[IWE]\d{4} "
        r"|\b(?:WARNING|INFO|ERROR):|\b(?!User)\w+Warning:|^\d{4}-\d\d-\d\d "
        r"\d\d:\d\d",
        re.M,
    ),
    "a traceback": re.compile(r"\bTraceback\b"),
    "a memory address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
}


@pytest.fixture(params=NOTEBOOKS, ids=name_of)
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
        "".join(part)
        for part in [output.get("text", ""), *(data[k] for k in data if not k.startswith("image/"))]
    )


def pictures(cell):
    return [
        kind
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def definitions(cell, kinds=(ast.FunctionDef, ast.AsyncFunctionDef)):
    return [node for node in ast.walk(tree(cell)) if isinstance(node, kinds)]


def exports(notebook):
    return [cell for cell in code(notebook) if "export" in flags(cell)]


def test_first_cell(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S", source(first)), (
        "the first cell must be a markdown '# Title'"
    )
    assert re.search(r"^> \S", source(first), re.M), (
        "the first cell needs a '> ' line: what is in the notebook, and in its module"
    )


def parameters(node):
    "Names that a docstring has to explain: parameters of a function, fields of a NamedTuple."
    if isinstance(node, ast.ClassDef):
        return [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]
    a = node.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [argument.arg for argument in found if argument.arg not in ("self", "cls")]


def public(cell):
    "Public functions and classes of an exported cell, and the methods of these classes."
    for node in tree(cell).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


OF_KERAS = {  # hooks that Keras calls, whose parameters Keras explains
    "call", "build", "result", "reset_state", "set_model", "train_step", "test_step",
    "on_epoch_begin", "on_epoch_end", "on_train_begin", "on_train_end",
    "on_train_batch_begin", "on_train_batch_end",
    "make_train_function", "get_config", "error",
}  # fmt: skip


def test_help_explains_each_parameter(notebook):
    def _unexplained(cell):
        for name, node in public(cell):
            text = ast.get_docstring(node)
            if not text:
                yield where(cell, f"{name} needs a docstring (or a name that starts with _)")
            elif name.split(".")[-1] not in OF_KERAS:
                lines = re.findall(r"^ *\*{0,2}(\w+(?:, \*{0,2}\w+)*):", text, re.M)
                known = {word for line in lines for word in re.findall(r"\w+", line)}
                missing = [p for p in parameters(node) if p not in known]
                if missing:
                    yield where(
                        cell, f"the docstring of {name} does not explain {', '.join(missing)}"
                    )

    assert_none(complaint for cell in exports(notebook) for complaint in _unexplained(cell))


def test_help_names_what_it_raises(notebook):
    for cell in exports(notebook):
        for name, node in public(cell):
            if isinstance(node, ast.ClassDef):
                continue
            caught = {  # and so is no matter of the caller's
                id(n)
                for block in ast.walk(node)
                if isinstance(block, ast.Try) and block.handlers
                for statement in block.body
                for n in ast.walk(statement)
            }
            calls = [
                n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and id(n) not in caught
            ]
            raised = {getattr(c.func, "id", "") for c in calls if isinstance(c, ast.Call)}
            silent = [error for error in raised if error not in (ast.get_docstring(node) or "")]
            assert not silent, where(
                cell, f"{name} raises {', '.join(silent)}: say so under Raises:"
            )


def test_size_of_outputs(notebook):
    size = sum(len(json.dumps(output)) for cell in code(notebook) for output in cell["outputs"])
    assert size <= 150 * 1024, (
        f"{size // 1024} KB of stored outputs: at most 150; fewer or plainer figures"
    )


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
            described = (
                after and after["cell_type"] == "markdown" and source(after).startswith("*Figure:")
            )
            assert described, where(
                cell,
                "the next cell must be markdown that starts with '*Figure:' and says what one sees",
            )
            assert len(source(after).split()) >= 10, where(
                cell, "ten words at least for somebody who cannot see the figure"
            )


def test_house_rules(notebook):
    rules = {
        r"^\s*from .* import \*": "import names, not *",
        r"^\s*from \.": "write `from distillnb.x import y`; nbdev makes it relative",
        r"\btest_close\(": "test_close compares only the first element; use "
        "np.testing.assert_allclose",
    }
    broken = [
        (cell, cure)
        for cell in code(notebook)
        for rule, cure in rules.items()
        if re.search(rule, source(cell), re.M)
    ]
    assert_none(where(cell, cure) for cell, cure in broken)
