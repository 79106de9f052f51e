"""Virtual environments for the peers, each with its own pins; made on first use.

    python -m benchmarks.peers.environments

What cannot be installed is named in one line, and the rest goes on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("torch", "jax")
ALONE = ("higher", "betty-ml")  # whose lists of requirements are out of date
ASK = """
import importlib.metadata as m, json
found = {d.name.lower().replace("_", "-"): d.version.split("+")[0] for d in m.distributions()}
print(json.dumps(found))
"""


def pins(name):
    "{package: version} of an environment."
    lines = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8").split()
    return {
        package.replace("_", "-"): version
        for package, version in (line.split("==") for line in lines)
    }


def python(name):
    "The interpreter of an environment."
    return ROOT / ".venv-peers" / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def installed(name):
    "{package: version} that the environment has."
    return json.loads(
        subprocess.run([python(name), "-c", ASK], capture_output=True, text=True, check=True).stdout
    )


def _failure(command):
    "Run it; the reason in a few words if it fails, else nothing."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
        "ERROR: failed"
    ]
    return errors[-1].removeprefix("ERROR: ")[:100] if done.returncode else ""


def _install(name, package, version):
    "Install one package with the pins of its environment; the reason if that fails."
    rest = (
        ["--no-deps"] if package in ALONE else ["--constraint", HERE / f"requirements-{name}.txt"]
    )
    pip = [python(name), "-m", "pip", "install", "--quiet", "--retries", "1"]
    return _failure([*pip, *rest, f"{package}=={version}"])


def ensure(name):
    """Make an environment, or complete it; its interpreter, or None where the first thing it needs
    cannot be had.
    """
    if not python(name).exists():
        reason = _failure([sys.executable, "-m", "venv", python(name).parents[1]])
        if reason:
            return print(f"skipped: the environment {name} ({reason})")
    for package, version in pins(name).items():
        if installed(name).get(package) != version:
            reason = _install(name, package, version)
            if reason:
                print(f"skipped: {package} ({reason})")
    return python(name) if name in installed(name) else print(f"skipped: all peers of {name}")


if __name__ == "__main__":
    for environment in NAMES:
        ensure(environment)
