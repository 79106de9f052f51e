"""Run every notebook in a process of its own, on a copy: `python tools/execute.py`.

`python tools/execute.py 22 store` runs those two only. The copies, with fresh outputs, are left in
executed/ for the tests to compare and for `make nbs` to keep. A line per notebook says how long it
took and how much memory. Errors and memory beyond the budget end with status 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from notebooks import EXECUTED, NBS, NOTEBOOKS, ROOT, name_of

BUDGET = 1536  # MB; the 60 seconds of a notebook are reported, not enforced: machines differ
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: a notebook needs no network
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OPENBLAS_NUM_THREADS")
ENVIRONMENT = {
    **dict.fromkeys(THREADS, "1"),
    **os.environ,
    **dict.fromkeys(PROXIES, NOWHERE),
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def tool(name):
    "A command of the environment that runs this file."
    return Path(sys.executable).with_name(name)


def run_notebook(path, *options):
    "Run one notebook with nbdev-test: (it passed, what it said, seconds, MB at the peak)."
    command = [tool("nbdev-test"), path, "--n-workers", "0", *options]
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode(errors="replace")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    passed = process.returncode == 0 and "Success." in output
    return passed, output, time.monotonic() - started, peak


def run(path):
    "Run the copy of one notebook and report in one line; True if all is well."
    copied = EXECUTED / path.relative_to(NBS)
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copied)
    passed, output, seconds, peak = run_notebook(copied, "--save")
    note = "" if passed else "FAILED"
    if peak > BUDGET:
        passed, note = False, f"{note} more than {BUDGET} MB".strip()
    print(f"{name_of(path):40}{seconds:6.0f} s{peak:7.0f} MB  {note}".rstrip(), flush=True)
    if not passed:
        print(output, file=sys.stderr, flush=True)
        copied.unlink()
    return passed


def main(chosen=()):
    chosen = [p for p in NOTEBOOKS if not chosen or p.stem.startswith(tuple(chosen))]
    kept = {path.relative_to(NBS) for path in NOTEBOOKS} - {
        path.relative_to(NBS) for path in chosen
    }
    for path in EXECUTED.rglob("*.ipynb"):
        if path.relative_to(EXECUTED) not in kept:
            path.unlink()
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(run, chosen))
    subprocess.run([tool("nbdev-clean"), "--fname", EXECUTED], cwd=ROOT, check=True)
    print(f"{sum(passed)} of {len(passed)} notebooks pass")
    return not all(passed) or not passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
