"""The committed results: tables and figures have their records, and say what they say."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["method", "n", "accuracy_mean", "accuracy_sd", "steps", "hypergradients", "seconds"]
CLEAN = ("synthetic-clean", "fashion-mnist-clean", "reduced-cifar10-clean")
AUTHORS = ("synthetic-authors", "fashion-mnist-authors", "reduced-cifar10-authors")
RESULTS = [ROOT / "results" / name for name in (*CLEAN, *AUTHORS)]


def read(folder):
    "A results folder: (rows of the table, records)."
    with open(folder / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = (folder / "records.jsonl").read_text(encoding="utf-8")
    return rows, [json.loads(line) for line in text.splitlines()]


SUITES = sorted((ROOT / "results").glob("suite-*/"))


@pytest.mark.parametrize("folder", SUITES, ids=lambda folder: folder.name)
def test_suites_have_their_records_and_tables_say_what_they_say(folder):
    from distillnb.lab.regimes import markdown_suite
    from distillnb.lab.tables import read_records

    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert (
        not {"command", "versions", "seeds", "threads", "regimes", "methods"} - environment.keys()
    )
    records = read_records(folder)
    assert all(record["seeds"] == environment["seeds"] for record in records)
    there, wanted = (
        {(r["regime"], r["method"]) for r in records},
        (environment["regimes"], environment["methods"]),
    )
    assert there.issuperset((regime, method) for regime in wanted[0] for method in wanted[1])
    assert all(
        record["split"] == ("development" if folder.name.endswith("development") else "test")
        for record in records
    )
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown_suite(records)
    assert (folder / "suite.png").exists()


results = pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)


@results
def test_results_have_their_records(folder):
    for name in ("records.jsonl", "environment.json", "table.csv", "table.md"):
        assert (folder / name).exists(), f"results/{folder.name}/{name} is missing: make results"
    assert list(folder.glob("*.png")), f"results/{folder.name} has no figure: make results"
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    missing = {"command", "versions", "seeds", "threads"} - environment.keys()
    assert not missing, f"environment.json does not say {missing}"


@results
def test_tables_are_what_the_records_say(folder):
    rows, records = read(folder)
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert {row["method"] for row in rows} == {record["method"] for record in records}
    table = (folder / "table.md").read_text(encoding="utf-8")
    for row in rows:
        runs = [record for record in records if record["method"] == row["method"]]
        assert int(row["n"]) == len(runs) and row["method"] in table
        accuracy = np.array([record["accuracy"] for record in runs], float)
        np.testing.assert_allclose(float(row["accuracy_mean"]), accuracy.mean(), rtol=0, atol=6e-5)
        spreads = [accuracy.std(ddof=d) for d in (0, 1) if len(runs) > d]
        assert min(abs(float(row["accuracy_sd"]) - s) for s in spreads) < 6e-5, (
            f"accuracy_sd of {row['method']}"
        )


def test_every_figure_and_table_has_records_beside_it():
    folders = {
        path.parent
        for path in (ROOT / "results").rglob("*")
        if path.suffix in (".png", ".csv", ".md") and path.stem != "README"
    }
    for folder in folders:
        for name in ("records.jsonl", "environment.json"):
            assert (folder / name).exists(), (
                f"results/{folder.name} shows something but has no {name}"
            )


COMMAND = "import sys; from distillnb.lab.cli import main; sys.exit(main())"


@pytest.mark.parametrize("folder", [*RESULTS, *SUITES], ids=lambda folder: folder.name)
def test_the_command_makes_tables_and_figures_again(folder, tmp_path):
    "In a copy; the tables to the byte, the figures by their names."
    copy = tmp_path / folder.name
    copy.mkdir()
    shutil.copy(folder / "records.jsonl", copy)
    for command in ("table", "plot"):
        words = [sys.executable, "-c", COMMAND, command, folder.name]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and result.stdout, result.stderr
    made = {path.name for path in copy.iterdir()} | {"environment.json"}
    assert made == {path.name for path in folder.iterdir()}
    for table in (*folder.glob("*.md"), *folder.glob("*.csv")):
        assert (copy / table.name).read_bytes() == table.read_bytes(), table.name


README_ROWS = {  # what the row is called -> methods of which the best by validation is taken
    "`lines+fallback`": ["lines+fallback"],
    "`lines`": ["lines"],
    "`gradient`": ["gradient"],
    "`tpe`": ["tpe"],
    "`half-4`": ["half-4"],
    "labels only, teacher only": ["labels", "teacher-4", "half-4"],
}


@pytest.mark.parametrize("row", README_ROWS)
def test_readme_says_what_the_records_say(row):
    from distillnb.lab.tables import read_records

    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("|") and row in line]
    shown = line.split("|")[2:4]
    for text, name in zip(shown, ("fashion-mnist", "reduced-cifar10"), strict=True):
        records = read_records(ROOT / "results" / f"suite-{name}")
        found = {(r["regime"], r["method"]): r for r in records}
        of = []
        for regime in dict.fromkeys(r["regime"] for r in records):
            rows = [found[regime, method] for method in README_ROWS[row]]
            validation = np.array([r["validation_accuracy"] for r in rows])
            accuracy = np.array([r["accuracy"] for r in rows])
            of.append(np.take_along_axis(accuracy, validation.argmax(0)[None], 0)[0])
        mean, sd = 100 * np.mean(of), 100 * np.mean(of, 0).std(ddof=1)
        assert text.strip() == f"{mean:.1f} ± {sd:.1f}"


def test_readme_says_how_sure_the_synthetic_gain_is():
    from distillnb.lab.tables import read_records, summarise

    rows = {row["method"]: row for row in summarise(read_records(ROOT / "results/synthetic-clean"))}
    gradient, fixed = rows["gradient"], rows["fixed"]
    assert round(100 * gradient["minus_fixed"]) == 4 and round(gradient["p_value"], 2) == 0.08
    assert round(gradient["plain_steps"] / fixed["plain_steps"], 1) == 2.7
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "four points above the textbook setting, at 2.7 times its cost" in text
    assert "(p = 0.08)" in text
