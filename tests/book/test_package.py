"""The package builds, installs and starts, far from this folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution

import pytest
from notebooks import CHAPTERS, PACKAGE, ROOT, module
from packaging.requirements import Requirement


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel made from a source archive made from a copy of the repository."
    folder = tmp_path_factory.mktemp("build")
    names = (
        ".*",
        "build",
        "dist",
        "*.egg-info",
        "runs",
        "executed",
        "results",
        "nbs",
        "__pycache__",
    )
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*names))
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder,
        folder / "copy",
        cwd=folder,
    )
    assert len(list(folder.glob("distillnb-*.tar.gz"))) == 1
    (path,) = folder.glob("distillnb-*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel):
    "A folder with nothing but our package installed, as pip does it."
    target = wheel.parent / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        target,
        wheel,
    )
    return target


@pytest.fixture(scope="module")
def facts(site):
    (folder,) = site.glob("distillnb-*.dist-info")
    return PathDistribution(folder)


def away(site, *command):
    "Run Python outside of the repository, on the installed package."
    elsewhere = site.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return run(sys.executable, *command, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)})


def test_wheel_has_the_modules_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"distillnb/{name.replace('.', '/')}.py" for name in map(module, CHAPTERS) if name}
    modules |= {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("_*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert any(name.endswith("/licenses/LICENSE") for name in names), (
        "the licence must travel with the wheel"
    )


def test_facts(facts):
    version = re.search(
        r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.M
    )[1]
    assert facts.version == version
    assert facts.metadata["License"] == "Apache-2.0"
    assert facts.metadata["Requires-Python"] == ">=3.11"
    assert facts.metadata["Description-Content-Type"] == "text/markdown"
    assert [(e.group, e.name, e.value) for e in facts.entry_points] == [
        ("console_scripts", "distillnb", "distillnb.lab.cli:main")
    ]


def test_requirements(facts):
    "Whoever wants the ten lines of README installs four packages; the rest is in extras."
    wanted = [Requirement(row) for row in facts.requires]
    assert {r.name for r in wanted if not r.marker} == {
        "numpy",
        "tensorflow",
        "keras",
        "scikit-learn",
    }
    assert set(facts.metadata.get_all("Provides-Extra")) == {
        "figures",
        "hpo",
        "ray",
        "experiments",
        "lab",
        "dev",
    }


def test_import_elsewhere(site):
    said = away(
        site, "-c", "import distillnb; print(distillnb.__file__, distillnb.__version__)"
    ).split()
    assert said[0].startswith(str(site)), "the copy under test must be the installed one"


@pytest.mark.parametrize(("argument", "word"), [("--help", "run"), ("list", "fashion-mnist")])
def test_command_elsewhere(site, argument, word):
    assert word in away(site, site / "bin" / "distillnb", argument)
