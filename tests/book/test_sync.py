"""Every copy is generated, and in step: modules, README, outputs, package facts and pins."""

import base64
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
from notebooks import CHAPTERS, NBS, NOTEBOOKS, PACKAGE, ROOT, executed, module, name_of, source
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run(*command, cwd):
    result = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def facts():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_each_module_has_one_home():
    homes = [module(path) for path in CHAPTERS if module(path)]
    made = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    names = [path.with_suffix("").as_posix().replace("/", ".") for path in made]
    assert sorted(homes) == sorted(n for n in names if not n.split(".")[-1].startswith("_")), (
        "each module has one notebook that starts with `#| default_exp` and its name"
    )


def sources(package):
    "Relative path -> text of each module in a package."
    return {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
    }


def test_modules_are_exported(tmp_path):
    "nbdev-export in a copy that has no modules makes the modules that are committed."
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    by_hand = ("distillnb/__init__.py", "distillnb/__main__.py")
    for name in ("pyproject.toml", "settings.ini", *by_hand):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(BIN / "nbdev-export", cwd=tmp_path)
    made, kept = sources(tmp_path / "distillnb"), sources(PACKAGE)
    stale = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert not stale, f"distillnb/ and nbs/ differ in {stale}: edit the notebook, then `make nbs`"
    assert (tmp_path / "pyproject.toml").read_text(encoding="utf-8") == (
        ROOT / "pyproject.toml"
    ).read_text(encoding="utf-8")


def test_contents_and_links_are_made():
    run(sys.executable, ROOT / "tools" / "contents.py", "--check", cwd=ROOT)


def test_readme_is_the_index(tmp_path):
    "`make readme` in a copy makes the README, and its pictures, that are committed."
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    assert (NBS / "index.ipynb").exists(), "nbs/index.ipynb is missing: README.md is made from it"
    run("make", "readme", cwd=tmp_path)
    for made in [tmp_path / "README.md", *(tmp_path / "README_files").glob("*")]:
        kept = ROOT / made.relative_to(tmp_path)
        assert kept.exists() and kept.read_bytes() == made.read_bytes(), (
            f"{kept.name} is not what `make readme` makes"
        )


def test_settings_agree_with_pyproject():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in tables, (
        "a [project] table would override setup.py: the facts are in settings.ini"
    )
    for name, value in tables["tool"]["nbdev"].items():
        if name in facts():
            assert facts()[name] == value, f"{name} differs between settings.ini and pyproject.toml"
    assert {"lib_path", "nbs_path", "title"} <= tables["tool"]["nbdev"].keys() & facts().keys()


def test_constraints_cover_every_requirement():
    """Everything that our requirements bring, directly or not, is pinned, and the pin is what is
    installed.
    """
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


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w])", re.I)


GROWS = "# another processor rounds otherwise"


def shown(output):
    "What an output shows in words, without its pictures."
    data = output.get("data", {})
    parts = [output.get("text", ""), *(data[k] for k in sorted(data) if not k.startswith("image/"))]
    return "\n".join("".join(part) for part in parts)


def digits(text):
    "(value, half a unit of its last digit, 0 for a whole number) for each number in a text."
    for found in NUMBER.findall(text):
        number = found.replace(",", "").replace("_", "")
        mantissa, _, exponent = number.lower().partition("e")
        decimals = len(mantissa.partition(".")[2])
        counts = number.lstrip("+-").isdigit()
        yield float(number), 0.0 if counts else 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def same_text(kept, made):
    "The same words; numbers within two units of their last digit, or two per cent."
    if NUMBER.sub("#", re.sub(r"\s+", " ", kept)) != NUMBER.sub("#", re.sub(r"\s+", " ", made)):
        return False
    pairs = zip(digits(kept), digits(made), strict=True)
    return all(abs(a - b) <= max(4 * max(u, v), 0.02 * abs(a)) for (a, u), (b, v) in pairs)


def picture(output):
    png = output.get("data", {}).get("image/png")
    return png and Image.open(io.BytesIO(base64.b64decode("".join(png))))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_outputs_are_as_a_run_leaves_them(path):
    """A run shows the same things in the same places, and the same numbers in the digits that mean
    something.

    Another processor rounds otherwise. What a figure claims is asserted by the notebook that draws
    it; here it has to be there, in its size.
    """
    stored, fresh = (json.loads(p.read_text(encoding="utf-8")) for p in (path, executed(path)))
    for kept, made in zip(stored["cells"], fresh["cells"], strict=True):
        cure = f"seed it, round it, then `make nbs`\n{source(kept)}"
        assert kept["cell_type"] == made["cell_type"] and source(kept) == source(made)
        outputs = kept.get("outputs", []), made.get("outputs", [])
        assert len(outputs[0]) == len(outputs[1]), f"a run shows other things: {cure}"
        for one, other in zip(*outputs, strict=True):
            assert one["output_type"] == other["output_type"], f"a run shows other things: {cure}"
            texts = shown(one), shown(other)
            if GROWS in source(
                kept
            ):  # a training in which a last digit grows; its claims are asserted
                texts = [NUMBER.sub("0", text) for text in texts]
            assert same_text(*texts), f"stored {texts[0]!r}, a run says {texts[1]!r}: {cure}"
            pictures = picture(one), picture(other)
            assert bool(pictures[0]) == bool(pictures[1]), f"a run draws no figure, or one: {cure}"
            if pictures[0]:
                apart = np.abs(np.subtract(pictures[0].size, pictures[1].size))
                assert apart.max() <= 8, f"a run draws a figure of another size: {cure}"
    assert stored["metadata"] == fresh["metadata"], "the notebook's metadata are not clean"


def test_numbers_are_compared_by_their_digits():
    assert same_text("0.795 of 10", "0.796 of 10") and same_text("1e-12", "1.3e-12")
    assert not same_text("0.795", "0.815") and not same_text("3 of 10", "4 of 100")
    assert not same_text("beta1 0.5", "beta2 0.5") and not same_text("[1, 2]", "[1, 2, 3]")


def test_one_version():
    version = re.search(
        r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.M
    )[1]
    assert re.search(
        rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    ), "CHANGELOG.md has no such version"
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8"), (
        "CITATION.cff has another version"
    )
