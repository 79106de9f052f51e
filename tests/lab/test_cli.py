"""What a shell sees of the command: exit codes, two channels, no noise, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = "import sys; from distillnb.lab.cli import main; sys.exit(main())"


def distillnb(*words, before="", cwd):
    "Run the command in a fresh Python, away from the repository; `before` is code that runs first."
    return subprocess.run(
        [sys.executable, "-c", before + COMMAND, *words], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "line", ["--version", "--help", "list", "run --help", "suite --help", "table --help"]
)
def test_information_goes_to_the_output(line, tmp_path):
    result = distillnb(*line.split(), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("runn synthetic", "run, suite, table, plot, bench, list"),
        ("run sinthetic", "did you mean synthetic?"),
        ("run synthetic --methods none,gradeint", "did you mean gradient?"),
        ("run synthetic --protocol honest", "clean, authors"),
        ("run synthetic --scale huge", "smoke, laptop, paper"),
        ("run synthetic --seeds -1", "--help"),
        ("run synthetic --seeds many", "whole number from 1"),
        ("run synthetic --colour red", "--help"),
        ("run", "--help"),
        ("suite fashon-mnist", "did you mean fashion-mnist?"),
        ("suite digits --methods labels,gradeint", "did you mean gradient?"),
        ("suite digits --methods lines", "add one, for example 'labels'"),
        ("suite digits --workers 2 --ray auto", "not allowed with argument --workers"),
        ("suite digits --workers none", "whole number from 1"),
        ("plot runs/synthetic", "distillnb run synthetic"),
    ],
)
def test_bad_usage_is_one_line_and_2(line, cure, tmp_path):
    result = distillnb(*line.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr.startswith("distillnb: ")
        and result.stderr.count("\n") == 1
        and cure in result.stderr
    )
    assert not list(tmp_path.iterdir()), "bad usage must not leave anything behind"


def test_no_command_shows_the_help_and_fails(tmp_path):
    result = distillnb(cwd=tmp_path)
    assert result.returncode == 2 and "examples:" in result.stderr


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "list",
        "run --help",
        "run sinthetic",
        "suite nothing",
        "table nowhere",
    ],
)
def test_nothing_heavy_is_loaded_without_need(line, tmp_path):
    code = f"from distillnb.lab.cli import main; import sys; main({line.split()!r}); "
    code += "print(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not {"tensorflow", "keras", "matplotlib", "sklearn", "optuna"} & set(
        result.stderr.split()
    )


def test_a_run_from_beginning_to_end(tmp_path):
    "No noise on the error channel, not even TensorFlow's, and the table again to the letter."
    run = [
        "run",
        "synthetic",
        "--scale",
        "smoke",
        "--methods",
        "none",
        "gradient",
        "--seeds",
        "2",
        "--out",
        "here/now",
    ]
    result = distillnb(*run, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    left = {path.name for path in (tmp_path / "here/now").iterdir()}
    assert left >= {
        "records.jsonl",
        "environment.json",
        "table.csv",
        "table.md",
        "by-method.png",
        "cost.png",
    }
    records = [
        json.loads(row) for row in (tmp_path / "here/now/records.jsonl").read_text().splitlines()
    ]
    assert [(r["method"], r["seed"]) for r in records] == [
        (m, s) for m in ("none", "gradient") for s in (0, 1)
    ]

    before = {
        path: path.read_bytes() for path in (tmp_path / "here/now").iterdir() if path.is_file()
    }
    table = distillnb("table", "here/now", cwd=tmp_path)
    assert (table.returncode, table.stderr) == (0, "") and table.stdout.strip() in result.stdout
    plot = distillnb("plot", "here/now", cwd=tmp_path)
    assert (plot.returncode, plot.stderr) == (0, "") and "here/now/cost.png" in plot.stdout
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    "text",
    ["not JSON", '{"method": "none"', "{}", "[1, 2]", '{"suite": "digits", "method": "lines"}'],
)
@pytest.mark.parametrize("command", ["table", "plot"])
def test_damaged_records_are_bad_values(text, command, tmp_path):
    (tmp_path / "records.jsonl").write_text(text + "\n")
    result = distillnb(command, ".", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "") and result.stderr.count("\n") == 1, (
        result.stderr
    )


def test_a_folder_that_cannot_be_made_fails_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = distillnb("run", "synthetic", "--out", "taken", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "taken" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["matplotlib", "optuna", "tqdm"])
def test_a_missing_package_is_one_line_with_the_cure(package, tmp_path):
    before = f"import sys; sys.modules[{package!r}] = None\n"
    result = distillnb(
        *["run", "synthetic", "--scale", "smoke", "--methods", "tpe", "--seeds", "1"],
        before=before,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        package in result.stderr
        and "pip install '.[experiments]' in a clone" in result.stderr
        and result.stderr.count("\n") == 1
    )


FAKE = """
import sys, time, types
import distillnb.lab.experiments as experiments
sys.modules["keras"] = types.ModuleType("keras")  # an experiment that needs no TensorFlow
def run_experiment(*args, **options):
    {body}
experiments.run_experiment = run_experiment
"""


def test_a_fault_of_ours_is_shown_in_full(tmp_path):
    result = distillnb("run", "synthetic", before=FAKE.format(body="return 1 / 0"), cwd=tmp_path)
    assert (
        result.returncode == 1
        and "Traceback" in result.stderr
        and "ZeroDivisionError" in result.stderr
    )


def hear_ctrl_c():
    "Whoever starts the tests in the background has it ignored."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("sent", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_ctrl_c_and_sigterm_are_one_line_and_a_code(sent, status, name, tmp_path):
    code = FAKE.format(body="print('begun', flush=True); time.sleep(60)") + COMMAND
    command = [sys.executable, "-c", code, "run", "synthetic"]
    options = dict(
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    with subprocess.Popen(command, cwd=tmp_path, **options) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (
        status,
        f"distillnb: stopped by {name}; the same command with --resume goes on from here\n",
    )


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(tmp_path):
    "Each time a further training is finished, and as many times again in the middle of one."
    run = [
        "run",
        "digits",
        "--scale",
        "smoke",
        "--methods",
        "none",
        "gradient",
        "lines",
        "tpe",
        "--seeds",
        "2",
        "--resume",
        "--out",
    ]
    assert distillnb(*run, "whole", cwd=tmp_path).returncode == 0
    for finished in (1, 3, 5):
        command = [sys.executable, "-c", COMMAND, *run, "torn"]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            journal = tmp_path / "torn/journal"
            while not (journal.exists() and journal.read_bytes().count(b"\n") >= finished):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
            time.sleep(0.3 * (finished == 3))
            process.send_signal(signal.SIGKILL)
    assert distillnb(*run, "torn", cwd=tmp_path).returncode == 0
    whole, torn = (
        [json.loads(line) for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        for name in ("whole", "torn")
    )
    assert [r | {"seconds": 0} for r in whole] == [r | {"seconds": 0} for r in torn]

    def newest(name):
        states = sorted((tmp_path / name / "states").glob("*.npz"))
        return {path.stem.rpartition("-")[0]: path.read_bytes() for path in states}

    assert (
        newest("whole") == newest("torn") and len(newest("whole")) == 2 + 3 + 3
    )  # a teacher and its table, students


def test_a_run_is_not_overwritten(tmp_path):
    run = [
        "run",
        "digits",
        "--scale",
        "smoke",
        "--methods",
        "none",
        "--seeds",
        "1",
        "--out",
        "here",
    ]
    assert distillnb(*run, cwd=tmp_path).returncode == 0
    again = distillnb(*run, cwd=tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr and again.stderr.count("\n") == 1
    other = distillnb(*run, "--resume", "--seeds", "2", cwd=tmp_path)
    assert other.returncode == 2 and "configuration.seeds" in other.stderr
