"""What is committed is fit for strangers: no trace of a machine, no dead link, no table without
its records.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from notebooks import CHAPTERS, NBS, NOTEBOOKS, ROOT, cells, source

FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.])/(?:home|root|work|Users|mnt)/\w|\b[A-Z]:\\Users"
    ),
    "a package registry": re.compile(
        r"(?:index[-]url|trusted[-]host|find[-]links)\b|python[h]osted", re.I
    ),
    "a private address": re.compile(
        r"https?://(?:[^/\s]*@|[\w-]+[:/\s]|10\.|192\.168\.|[\w.-]+\.(?:internal|local|lan|corp)\b)"
    ),
    "the shared folder": re.compile(r"\.\./shared\b"),
}
ALLOWED = {
    "Makefile": {"the shared folder"},
    ".ci/run": {"the shared folder"},
    "tools/execute.py": {"a private address"},
}


def committed():
    "What git has, or would have after `git add .`: everything that it does not ignore."
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted({ROOT / name for name in names if (ROOT / name).is_file()})


def texts():
    return [path for path in committed() if path.suffix not in (".png", ".npz", ".gz")]


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_trace_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    for what, pattern in FORBIDDEN.items():
        found = pattern.search(text)
        allowed = what in ALLOWED.get(path.relative_to(ROOT).as_posix(), ())
        assert allowed or not found, f"{what}: {found and text[found.start() : found.end() + 40]!r}"


def test_sizes():
    large = [
        f"{path.name} ({path.stat().st_size // 2**20} MB)"
        for path in committed()
        if path.stat().st_size > 2**20
    ]
    assert not large, f"too large to commit: {', '.join(large)}"


def links(text):
    "Targets of Markdown and HTML links and pictures, outside of code."
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    found = re.findall(r"\]\(<?([^)\s>]+)|(?:src|href)=\"([^\"]+)\"", text)
    return [
        a or b
        for a, b in found
        if not re.match(r"(?:https?|mailto|doi|data|attachment):|#", a or b)
    ]


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *NOTEBOOKS], ids=lambda path: path.name
)
def test_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")
    dead = [
        link for link in links(text) if not (path.parent / unquote(link.split("#")[0])).exists()
    ]
    assert not dead, f"dead links in {path.name}: {dead}"


def test_index_and_readme_name_every_chapter():
    for path in (NBS / "index.ipynb", ROOT / "README.md"):
        missing = [
            chapter.name
            for chapter in CHAPTERS
            if chapter.name not in path.read_text(encoding="utf-8")
        ]
        assert not missing, f"{path.name} does not lead to {', '.join(missing)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jupyter_does_not_ask_for_a_kernel(path):
    kernel = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kernelspec", {})
    assert kernel.get("name") == "python3", "the notebook's metadata need the kernelspec python3"


def test_ruff():
    "What people write; the modules are checked where they come from, in the notebooks."
    ruff = Path(sys.executable).with_name("ruff")
    command = [
        ruff,
        "check",
        "--output-format=concise",
        "nbs",
        "tests",
        "tools",
        "benchmarks",
        "setup.py",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
