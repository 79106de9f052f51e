"""Imports go one way, `import distillnb` is light, and nothing dangerous is called."""

import ast
import json
import subprocess
import sys
from configparser import ConfigParser

import pytest
from book import PACKAGE, ROOT

ARROWS = {
    **dict.fromkeys(["bilevel", "data", "models", "extrapolation", "runs", "figures", "second_order"], ()),
    "losses": ("bilevel", "second_order"),
    "named": ("losses",),
    "features": ("losses", "named"),
    "optimizers": ("bilevel",),
    "hypergradient": ("bilevel", "optimizers"),
    "horizons": ("bilevel", "optimizers", "hypergradient"),
    "training": ("bilevel", "optimizers", "hypergradient", "horizons", "extrapolation"),
    "batches": ("models", "training"),
    "stepping": ("losses", "features", "second_order", "optimizers", "hypergradient", "training", "batches"),
    "distiller": ("losses", "named", "features", "training", "batches", "stepping"),
    "callbacks": ("losses", "runs"),
    "messages": (),
    "workers": ("bilevel", "optimizers", "hypergradient", "training", "runs"),
    "tasks": ("data", "models", "losses", "optimizers", "training"),
    "experiments": ("tasks", "models", "losses", "named", "hypergradient", "training", "runs"),
    "tables": ("experiments",),
    "regimes": ("losses",),
    "suite": ("data", "models", "named", "optimizers", "training", "regimes", "tasks", "experiments", "tables", "runs",
              "figures"),
    "sweeps": ("tasks", "experiments", "runs"),
    "cost": ("losses", "optimizers", "hypergradient", "horizons", "training"),
    "cli": ("tasks", "experiments", "tables", "figures", "runs", "cost", "suite", "sweeps"),
}
NO_TENSORFLOW = [  # when imported
    "data", "extrapolation", "runs", "tasks", "experiments", "tables", "regimes", "suite", "figures", "cli", "cost", "messages",
    "sweeps",
]
EXTRAS = {
    "figures": {"matplotlib", "PIL"},
    "experiments": {"tqdm"},
    "suite": {"tqdm"},
}  # what a module may import beyond the base requirements
MODULES = {
    path.stem: ast.parse(path.read_text(encoding="utf-8"))
    for path in PACKAGE.glob("*.py")
    if not path.stem.startswith("_")
}
SOURCES = sorted([*PACKAGE.glob("*.py"), *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

modules = pytest.mark.parametrize("name", sorted(MODULES))


def imports(tree):
    "(dotted name, star?) for each import of a tree; one of our modules begins with a dot."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.replace("distillnb.", "."), False) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = base.replace("distillnb", ".", 1).replace("..", ".") if base.startswith("distillnb") else base
            for alias in node.names:
                yield (base + alias.name if base == "." else base), alias.name == "*"


def loaded(code):
    "The top-level modules that are loaded after a piece of code has run in a fresh Python."
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@modules
def test_imports_follow_the_arrows(name):
    assert name in ARROWS, f"{name} is not in the design's list of chapters"
    ours = {module.split(".")[1] for module, _ in imports(MODULES[name]) if module.startswith(".")}
    assert ours <= set(ARROWS[name]), f"{name} may import {ARROWS[name]}, not {sorted(ours - set(ARROWS[name]))}"


@modules
def test_imports_are_explicit(name):
    assert not [module for module, star in imports(MODULES[name]) if star], "import names, not *"


@modules
def test_no_tools_at_run_time(name):
    tools = {"nbdev", "fastcore", "execnb", "IPython", "ipykernel", "nbformat", "pytest"}
    used = tools & {module.split(".")[0] for module, _ in imports(MODULES[name])}
    assert not used, f"{used} belong to making the book, not to using the library"


@modules
def test_the_base_requirements_are_enough_to_import(name):
    "At module level only the standard library, what settings.ini requires, and our own modules."
    facts = ConfigParser(delimiters=["="])
    facts.read(ROOT / "settings.ini", encoding="utf-8")
    allowed = {*facts["DEFAULT"]["requirements"].split(), *EXTRAS.get(name, ()), *sys.stdlib_module_names, ""}
    top = ast.Module([node for node in MODULES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    foreign = {module.split(".")[0] for module, _ in imports(top)} - allowed
    assert not foreign, f"import {sorted(foreign)} inside the function that needs it"


def test_import_is_light():
    heavy = {"tensorflow", "keras", "numpy", "matplotlib", "sklearn", "optuna"} & loaded("import distillnb")
    assert not heavy, f"import distillnb loads {heavy}"


@pytest.mark.parametrize("name", NO_TENSORFLOW)
def test_some_modules_do_without_tensorflow(name):
    assert name in MODULES, f"distillnb/{name}.py is not there yet"
    heavy = {"tensorflow", "keras"} & loaded(f"import distillnb.{name}")
    assert not heavy, f"importing distillnb.{name} loads {heavy}: import them inside the functions that need them"


@pytest.mark.parametrize("arguments", ["--help", "run --help", "list"])
def test_help_is_instant(arguments):
    "Help and lists come before anything heavy is loaded."
    code = (
        f"from distillnb.cli import main\ntry: main({arguments.split()})\nexcept SystemExit as end: assert not end.code"
    )
    assert not {"tensorflow", "keras", "matplotlib", "sklearn"} & loaded(code)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_dangerous(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
    found = modules & {module.split(".")[0] for module, _ in imports(tree)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        bare = isinstance(call.func, ast.Name) and name in {"eval", "exec", "compile", "__import__"}
        pickled = any(k.arg == "allow_pickle" and getattr(k.value, "value", True) is not False for k in call.keywords)
        shell = any(k.arg == "shell" and getattr(k.value, "value", True) is not False for k in call.keywords)
        if bare or pickled or shell or name in {"load_model", "system"}:
            found.add(f"{name} in line {call.lineno}")
    assert not found, f"not in this project: {sorted(found)}"
