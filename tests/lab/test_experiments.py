"""Experiments on real images, at scale smoke: both protocols, from the teacher to the table."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from distillnb.lab import tables, tasks

ROOT = Path(os.environ.get("DISTILLNB_DATA") or "nowhere")
METHODS = ["fixed", "standardised", "gradient", "quarter-5", "matched"]


def needs(*names):
    lacking = [name for name in names if not (ROOT / name).is_dir()]
    return pytest.mark.skipif(
        bool(lacking), reason=f"no folder {', '.join(lacking)} in $DISTILLNB_DATA"
    )


@pytest.fixture
def run_experiment():
    from distillnb.lab.experiments import run_experiment

    return run_experiment


def folders(name, protocol):
    images = "cifar10" if "cifar10" in name else name
    return [images] + ["teacher-logits"] * (protocol == "authors")


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        pytest.param(name, protocol, marks=needs(*folders(name, protocol)))
        for name, protocol in (
            ("fashion-mnist", "clean"),
            ("reduced-cifar10", "clean"),
            ("reduced-cifar10", "authors"),
        )
    ],
)
def test_images_from_the_teacher_to_the_table(name, protocol, tmp_path, run_experiment):
    records = run_experiment(
        name, protocol, "smoke", METHODS, seeds=1, out=tmp_path, progress=False
    )
    assert [r["method"] for r in records] == METHODS and all(
        0 <= r["accuracy"] <= 0.6 for r in records
    )
    rows = {row["method"]: row for row in tables.write_tables(records, tmp_path)}
    about = json.loads((tmp_path / "environment.json").read_text())
    if protocol == "clean":
        assert {"teacher accuracy", "train accuracy", "validation accuracy", "sureness"} == set(
            about["teachers"]["teacher"]
        )
    price = 1 + (5 / 3 if protocol == "clean" else 8 / 3)
    assert (
        rows["gradient"]["plain_steps"] == round(10 * price) and rows["fixed"]["plain_steps"] == 10
    )
    assert records[2]["final"]["beta1"] == records[4]["final"]["beta1"]  # the weight matched


@needs("cifar10", "teacher-logits")
def test_the_authors_baselines_learn_from_the_validation_set_too():
    cache, about = tasks.published_table("reduced-cifar10")
    assert about["sureness"] > 0.99 and "validate" in about["leak"]
    task = tasks.image_task("reduced-cifar10", "authors", "smoke", [0, 1], cache)
    (alone, validation), (joined, _) = task.splits("gradient"), task.splits("fixed")
    assert alone["y"].shape == (2, 256) and joined["y"].shape == (2, 256 + 128)
    np.testing.assert_array_equal(alone["x"][0], alone["x"][1])  # one deal for all seeds
    np.testing.assert_array_equal(joined["x"][0, 256:], validation["x"][0])
    right = (joined["teacher_logits"][0].argmax(-1) == joined["y"][0]).mean()
    assert right > 0.99  # the leak: it knows the images that validate
    assert task.order == "authors" and not task.t_squared and len(task.starts) == 2


@needs("cifar10")
def test_no_split_of_reduced_cifar10_is_shared():
    _, splits = tasks.image_splits("reduced-cifar10", "clean", "laptop", 0)
    assert (
        max(splits.train.ids.max(), splits.validation.ids.max())
        < 12_800
        <= splits.teacher.ids.min()
    )
    assert len(splits.train.ids) == 11_520 and len(splits.test.ids) == 10_000


@pytest.mark.parametrize(
    "name", ["digits", pytest.param("fashion-mnist", marks=needs("fashion-mnist", "mnist"))]
)
def test_a_suite_resumes_and_keeps_its_test_set_shut_in_development(name, tmp_path):
    from distillnb.lab.experiments import run_suite

    asked = {
        "names": ["out-of-domain teacher"],
        "methods": ["labels", "lines"],
        "steps": 20,
        "progress": False,
    }
    records = run_suite(name, 2, development=True, out=tmp_path, **asked)
    assert [r["method"] for r in records] == asked["methods"]
    assert all((r["split"], r["seeds"]) == ("development", [1000, 1001]) for r in records)
    assert run_suite(name, 2, development=True, out=tmp_path, resume=True, **asked) == records
    with pytest.raises(ValueError, match="configuration.seeds"):
        run_suite(name, 2, out=tmp_path, resume=True, **asked)
    assert (
        " --development --seeds 2 "
        in json.loads((tmp_path / "environment.json").read_text())["command"]
    )
