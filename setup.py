"""Hand the facts of settings.ini to setuptools."""

from configparser import ConfigParser
from pathlib import Path
from re import search

from setuptools import find_packages, setup

here = Path(__file__).parent
facts = ConfigParser(delimiters=["="])
facts.read(here / "settings.ini", encoding="utf-8")
facts = facts["DEFAULT"]
version = search(
    r'__version__ = "(.+)"', (here / "distillnb" / "__init__.py").read_text(encoding="utf-8")
)[1]

setup(
    name=facts["lib_name"],
    version=version,
    description=facts["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    license=facts["license"],
    keywords=facts["keywords"],
    packages=find_packages(include=[facts["lib_path"], facts["lib_path"] + ".*"]),
    python_requires=f">={facts['min_python']}",
    install_requires=facts["requirements"].split(),
    extras_require={
        name.removesuffix("_requirements"): facts[name].split()
        for name in facts
        if name.endswith("_requirements")
    },
    entry_points={"console_scripts": facts["console_scripts"].splitlines()},
)
