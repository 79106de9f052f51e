"""Every copy is generated, and in step: modules, README, outputs, package facts and pins."""

import base64
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from book import CHAPTERS, NBS, NOTEBOOKS, PACKAGE, ROOT, code, executed, flags, module, source
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

LABS = ("31_does_it_pay",)  # notebooks that read records
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run(*command, cwd):
    result = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def facts():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_notebook_is_a_module(path):
    if path.stem in LABS:
        assert not any("export" in flags(cell) for cell in code(path)), "a lab notebook reads records and exports nothing"
        return
    assert module(path) == path.stem.split("_", 1)[1], "the stem names the module: start with `#| default_exp <stem>`"


def test_modules_are_exported(tmp_path):
    "nbdev-export in a copy that has no modules makes the modules that are committed."
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    for name in ("pyproject.toml", "settings.ini", "distillnb/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(BIN / "nbdev-export", cwd=tmp_path)
    made, kept = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
        for folder in (tmp_path / "distillnb", PACKAGE)
    )
    stale = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert not stale, f"distillnb/ and nbs/ differ in {', '.join(stale)}: edit the notebook, then `make nbs`"
    assert (tmp_path / "pyproject.toml").read_text(encoding="utf-8") == (ROOT / "pyproject.toml").read_text()


def test_readme_is_the_index(tmp_path):
    "`make readme` in a copy makes the README, and its pictures, that are committed."
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    assert (NBS / "index.ipynb").exists(), "nbs/index.ipynb is missing: README.md is made from it"
    run("make", "readme", cwd=tmp_path)
    for made in [tmp_path / "README.md", *(tmp_path / "README_files").glob("*")]:
        kept = ROOT / made.relative_to(tmp_path)
        assert kept.exists() and kept.read_bytes() == made.read_bytes(), f"{kept.name} is not what `make readme` makes"


def test_settings_agree_with_pyproject():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in tables, "a [project] table would override setup.py: the facts are in settings.ini"
    for name, value in tables["tool"]["nbdev"].items():
        if name in facts():
            assert facts()[name] == value, f"{name} differs between settings.ini and pyproject.toml"
    assert {"lib_path", "nbs_path", "title"} <= tables["tool"]["nbdev"].keys() & facts().keys()


def test_constraints_cover_every_requirement():
    "Everything that our requirements bring, directly or not, is pinned, and the pin is what is installed."
    rows = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(name): version for name, version in (row.split("==") for row in rows)}
    names = [name for name in facts() if name == "requirements" or name.endswith("_requirements")]
    todo = [Requirement(row) for name in names for row in facts()[name].split()]
    seen = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in wanted.extras or {""}:
            if name == "distillnb" or (name, extra) in seen:
                continue
            seen.add((name, extra))
            assert name in pins, f"{wanted} is not pinned in constraints.txt"
            assert metadata.version(name) == pins[name], (
                f"{name} {metadata.version(name)} is installed, {pins[name]} is pinned"
            )
            for row in map(Requirement, metadata.requires(name) or ()):
                if row.marker is None or row.marker.evaluate({"extra": extra}):
                    todo.append(row)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode("".join(png)))).convert("RGBA"), float)


def without_pictures(notebook):
    "A notebook whose PNGs are replaced by a word, and the PNGs."
    notebook, pngs = copy.deepcopy(notebook), []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                pngs.append(output["data"]["image/png"])
                output["data"]["image/png"] = "picture"
    return notebook, pngs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_as_a_run_leaves_them(path):
    "Words and numbers to the letter; pictures to the pixel, give or take what another processor rounds."
    (stored, stored_pngs), (fresh, fresh_pngs) = (
        without_pictures(json.loads(p.read_text(encoding="utf-8"))) for p in (path, executed(path))
    )
    for kept, made in zip(stored["cells"], fresh["cells"], strict=True):
        assert kept == made, f"a run changes this cell: seed it, round it, then `make nbs`\n{source(kept)}"
    assert stored == fresh, "the notebook's metadata are not clean: `make nbs`"
    for kept, made in zip(map(pixels, stored_pngs), map(pixels, fresh_pngs), strict=True):
        assert kept.shape == made.shape, "a run draws a figure of another size: `make nbs`"
        assert np.abs(kept - made).mean() < 0.5, "a run draws another figure: seed it, then `make nbs`"


def test_one_version():
    version = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.M)[1]
    assert re.search(rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M), (
        "CHANGELOG.md has no such version"
    )
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8"), (
        "CITATION.cff has another version"
    )
