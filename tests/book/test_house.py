"""The house: walls between folders, arrows one way, one place for each name, nothing dangerous, a
light import.
"""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from configparser import ConfigParser

import pytest
from notebooks import CHAPTERS, PACKAGE, ROOT, module

MAY_IMPORT = {
    "": {""},
    "distiller": {"", "distiller"},
    "lab": {"", "distiller", "lab"},
    "course": {"", "course"},
}
LEVELS = [  # of the core: a module imports only from the levels above its own
    {"checks"},
    {"bilevel", "losses", "second_order", "store", "extrapolation"},
    {"optimizers"},
    {"parametrization", "hypergradient", "meta_updates"},
    {"learnable_losses", "problem", "horizons"},
    {"bilevel_step"},
    {"training"},
    {"distributed"},
]
NO_TENSORFLOW = [
    "checks",
    "extrapolation",
    "store",
]  # of the core; and everything in lab/ that is no Keras model
KERAS_MODELS = {"lab.models"}
EXTRAS = {"lab.figures": {"matplotlib", "PIL"}, "lab.experiments": {"tqdm"}, "lab.ray": {"tqdm"}}
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.stem.startswith("_")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
PACKAGES = sorted({name.rpartition(".")[0] for name in MODULES})
SOURCES = sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
modules = pytest.mark.parametrize("name", sorted(MODULES))


def folder(name):
    return name.rpartition(".")[0]


def imports(name, tree):
    "Dotted names of what a module imports; one of ours begins with a dot and has no other."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (re.sub(r"^distillnb\b\.?", ".", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = ["", *name.split(".")[: -node.level]]
            base = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            known = base.lstrip(".") in MODULES
            yield from ([base] if known else [f"{base}.{alias.name}" for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            yield re.sub(r"^distillnb\b\.?", ".", node.module)


def ours(name, tree):
    return {found.lstrip(".") for found in imports(name, tree) if found.startswith(".")} & {
        *MODULES
    }


def top(tree):
    "The tree without what is imported inside of functions."
    return ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])


def loaded(code):
    "The top-level modules that are loaded after a piece of code has run in a fresh Python."
    code += "\nimport json, sys"
    code += "\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@modules
def test_arrows_between_folders(name):
    wrong = [o for o in ours(name, TREES[name]) if folder(o) not in MAY_IMPORT[folder(name)]]
    assert not wrong, f"{folder(name) or 'the core'} may not import {wrong}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not folder(name)))
def test_arrows_in_the_core(name):
    level = next((i for i, names in enumerate(LEVELS) if name in names), None)
    assert level is not None, f"say in LEVELS where {name} belongs"
    above = set().union(*LEVELS[:level])
    if level == 0:  # a few of these stand on one another
        above = LEVELS[0] - {name}
    assert ours(name, TREES[name]) <= above, f"{name} may import {sorted(above)}"


@pytest.mark.parametrize(
    "path", [p for p in CHAPTERS if p.stem[:2].isdigit()], ids=lambda p: p.stem
)
def test_a_chapter_needs_no_later_part(path):
    homes = {module(p): p.parent.name for p in CHAPTERS if module(p) and p.stem[:2].isdigit()}
    name = module(path)
    if name:
        needed = {o: homes[o] for o in ours(name, top(TREES[name])) if o in homes}
        later = [o for o, part in needed.items() if part > path.parent.name]
        assert not later, f"{name} needs {later}, which a later part of the book builds"


@modules
def test_imports_are_explicit(name):
    stars = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.alias) and n.name == "*"]
    assert not stars, "import names, not *"


@modules
def test_no_tools_at_run_time(name):
    tools = {"nbdev", "fastcore", "execnb", "IPython", "ipykernel", "nbformat", "pytest"}
    used = tools & {found.split(".")[0] for found in imports(name, TREES[name])}
    assert not used, f"{used} belong to making the book, not to using the library"


@modules
def test_the_base_requirements_are_enough_to_import(name):
    "At module level only the standard library, what settings.ini requires, and our own modules."
    facts = ConfigParser(delimiters=["="])
    facts.read(ROOT / "settings.ini", encoding="utf-8")
    required = facts["DEFAULT"]["requirements"].split()
    allowed = {*required, *EXTRAS.get(name, ()), *sys.stdlib_module_names, ""}
    unknown = {found.split(".")[0] for found in imports(name, top(TREES[name]))} - allowed
    assert not unknown, f"import {sorted(unknown)} inside the function that needs it"


def test_import_is_light():
    heavy = {"tensorflow", "keras", "numpy", "matplotlib", "sklearn", "optuna"}
    heavy &= loaded("import distillnb; dir(distillnb)")
    assert not heavy, f"import distillnb loads {heavy}"


LIGHT = [
    *NO_TENSORFLOW,
    *sorted(n for n in MODULES if folder(n) == "lab" and n not in KERAS_MODELS),
]


@pytest.mark.parametrize("name", LIGHT)
def test_some_modules_do_without_tensorflow(name):
    heavy = {"tensorflow", "keras"} & loaded(f"import distillnb.{name}")
    assert not heavy, f"distillnb.{name} loads {heavy}: import them in the functions that need them"


@pytest.mark.parametrize("arguments", ["--help", "run --help", "list"])
def test_help_is_instant(arguments):
    "Help and lists come before anything heavy is loaded."
    code = f"from distillnb.lab.cli import main\ntry: main({arguments.split()})"
    code += "\nexcept SystemExit as end: assert not end.code"
    assert not {"tensorflow", "keras", "matplotlib", "sklearn"} & loaded(code)


def test_python_m_distillnb():
    command = [sys.executable, "-m", "distillnb", "list"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "synthetic" in result.stdout, result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_dangerous(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
    found = forbidden & {name.split(".")[0] for name in imports("", tree)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        builtin = isinstance(call.func, ast.Name)
        bare = builtin and name in {"eval", "exec", "compile", "__import__"}
        on = {k.arg for k in call.keywords if getattr(k.value, "value", True) is not False}
        if bare or {"allow_pickle", "shell"} & on or name in {"load_model", "system"}:
            found.add(f"{name} in line {call.lineno}")
    assert not found, f"not in this project: {sorted(found)}"


def test_no_class_is_cut_in_two():
    "A class with exactly one subclass in the package is one class in two pieces."
    children, defined = defaultdict(set), {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                defined[node.name] = name
                for base in node.bases:
                    children[getattr(base, "attr", getattr(base, "id", ""))].add(node.name)
    cut = [f"{defined[b]}.{b}" for b, c in children.items() if b in defined and len(c) == 1]
    assert not cut, f"one subclass each: {cut}"


def test_each_public_name_has_one_place():
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                for element in node.value.elts:
                    places[element.value].append(name)
    twice = {public: where for public, where in places.items() if len(where) > 1}
    assert not twice, f"public in two modules: {twice}"


@modules
def test_a_user_of_the_wheel_has_no_chapters(name):
    text = MODULES[name].read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if not line.startswith("# %%")]
    found = [line for line in code if re.search(r"\b[Cc]hapters?\s+\d\d", line)]
    assert not found, f"a chapter's number, which a user of the wheel cannot look up: {found}"


def test_the_face():
    "`from distillnb import *` gives the eleven names, whatever was imported before."
    code = "import distillnb.learnable_losses\nfrom distillnb import *\nimport distillnb\n"
    code += (
        "assert all(callable(globals()[name]) for name in distillnb.__all__), distillnb.__all__\n"
    )
    code += "assert len(distillnb.__all__) == 11"
    loaded(code)
