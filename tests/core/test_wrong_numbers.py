"""What people bring: each wrong call is answered by an error of ours that names what is wrong.

A call that is answered with a number, or by somebody else's error, fails.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

from distillnb import checks, distributed, extrapolation, meta_updates
from distillnb.bilevel_step import init_train_state
from distillnb.lab import regimes, tables
from distillnb.losses import Metaparameters
from distillnb.optimizers import sgd
from distillnb.parametrization import box, mixture, product, unconstrained, unit_interval
from distillnb.problem import distillation

nan, inf = float("nan"), float("inf")
HALF = Metaparameters(0.5, 0.5, 4.0)
CASES = {}


def group(name, **cases):
    "Cases: their name -> (a part of the message, the call)."
    CASES.update({f"{name}: {what}": case for what, case in cases.items()})


group(
    "bounds",
    temperature_0=("the lower bound of temperature", lambda: box((0, 0, 0))),
    temperature_negative=("the lower bound of temperature", lambda: box((0, 0, -5))),
    weight_negative=("the lower bound of beta1", lambda: box((-1, 0, 1))),
    nan_high=("the upper bound of temperature", lambda: box((0, 0, 0.1), (1, 1, nan))),
    infinite=("the upper bound of beta1", lambda: box((0, 0, 0.1), (inf, inf, inf))),
    infinite_smooth=("the upper bound of beta1", lambda: unconstrained(high=(inf, inf, inf))),
    zero_smooth=("the lower bound of beta1", lambda: unconstrained((0, 1e-3, 0.05))),
    swapped=("lower bound of beta1 must be below", lambda: box((1, 1, 9), (0, 0, 1))),
    two=("lower must be three numbers", lambda: box((0, 0), (1, 1))),
    strings=("the lower bound of beta1", lambda: box(("a", "b", "c"))),
    none=("lower must be three numbers", lambda: box(None, None)),
    tie=("must be one of sum_to_one, got 'sum'", lambda: box(tie="sum")),
    tie_array=("must be one of sum_to_one", lambda: unconstrained(tie=("sum_to_one",))),
    no_room=("leaves no room", lambda: box((0, 0, 1), (0.3, 0.3, 9), "sum_to_one")),
    off_the_map=("out of reach", lambda: product({"a": unit_interval._replace(high=1.0)})),
    words=("must be numbers", lambda: product({"a": unit_interval._replace(high="1")})),
    cut=("cut must be a number", lambda: mixture(cut=2.0)),
    wall=("wall must be a number", lambda: mixture(wall=-1.0)),
    fixed_temperature=("temperature must be a number", lambda: mixture(temperature=-1.0)),
)
group(
    "metaparameters",
    too_hot=("temperature must lie between", lambda: unconstrained().unconstrain((0.5, 0.5, 1e6))),
    nan=("beta1 must lie between", lambda: unconstrained().unconstrain((nan, 0.5, 4.0))),
    none=("beta1 must be a number", lambda: unconstrained().unconstrain((None, 0.5, 4.0))),
    string=("beta1 must be a number", lambda: box().unconstrain(("0.5", 0.5, 4.0))),
    two=("metaparameters must be three", lambda: unconstrained().unconstrain((0.5, 4.0))),
    other_names=("metaparameters must be three", lambda: box().unconstrain({"beta1": 0.5, "T": 4})),
    untied=("needs beta1 + beta2 = 1", lambda: box(tie="sum_to_one").unconstrain((0.9, 0.9, 4.0))),
    whole=("dtype of raw metaparameters", lambda: unconstrained().unconstrain(HALF, "int32")),
    no_dtype=("dtype of raw metaparameters", lambda: unconstrained().unconstrain(HALF, "floaty")),
    width=("raw metaparameters must be floating", lambda: box().constrain(tf.zeros(2))),
    width_of_project=("raw metaparameters must be", lambda: box().project(tf.zeros([4, 2]))),
    of_whole_numbers=(
        "raw metaparameters must be",
        lambda: box().constrain(tf.constant([1, 2, 3])),
    ),
    silence=("lower the weights", lambda: mixture().unconstrain(HALF)),
    negative_share=("beta1 must be", lambda: mixture().unconstrain((-0.2, 0.4, 4.0))),
    nan_share=("beta2 must be", lambda: mixture().unconstrain((0.2, nan, 4.0))),
    another_temperature=("is not learned, got 2.0", lambda: mixture().unconstrain((0.2, 0.4, 2.0))),
)

LINE = extrapolation.fit_line([[1.0], [2.0], [3.0]])


def walk(step=lambda lam: 0.9 * lam, lam=(1.0, 1.0), steps=10, e1=3, e2=3, **more):
    return extrapolation.follow(step, np.array(lam), steps, e1, e2, **more)


group(
    "lines",
    of_nothing=("values has 0 point(s)", lambda: extrapolation.fit_line([])),
    of_one=("values has 1 point(s)", lambda: extrapolation.fit_line([[1.0]])),
    of_a_number=("values has 1 point(s)", lambda: extrapolation.fit_line(3.0)),
    of_nan=("values must be finite", lambda: extrapolation.fit_line([[nan], [1.0], [2.0]])),
    of_strings=("values must be a number", lambda: extrapolation.fit_line([["a"], ["b"]])),
    at_a_string=("z must be a number", lambda: extrapolation.predict(LINE, "5")),
    error_at_nan=("z must be finite", lambda: extrapolation.prediction_error(LINE, nan)),
    period_0=("e1 must be a whole number", lambda: extrapolation.restart_period(0, 5)),
    period_negative=("e1 must be a whole number", lambda: extrapolation.restart_period(-5, 10)),
    limit=("limit must be a whole number", lambda: extrapolation.safe_horizon(LINE, -1, 1.0)),
    tolerance=("tolerance must be positive", lambda: extrapolation.safe_horizon(LINE, 5, nan)),
    tolerance_word=("tolerance must be positive", lambda: extrapolation.safe_horizon(LINE, 5, "1")),
    e1_0=("e1 must be a whole number", lambda: walk(e1=0, e2=0)),
    e1_negative=("e1 must be a whole number", lambda: walk(e1=-1, e2=0)),
    e1_half=("e1 must be a whole number", lambda: walk(e1=2.5)),
    e2_negative=("e2 must be a whole number", lambda: walk(e2=-3)),
    steps_negative=("steps must be a whole number", lambda: walk(steps=-1)),
    tolerance_negative=("tolerance must be positive", lambda: walk(e2=0, tolerance=-1)),
    another_shape=("step must keep the shape", lambda: walk(lambda lam: np.ones(3))),
    project_to_one=("project must keep the shape", lambda: walk(project=lambda lam: lam[0])),
    start_nan=("lam must be finite", lambda: walk(lam=(nan, 1.0))),
    no_step=("step must be a function", lambda: walk(step="down")),
)
group(
    "meta-updates",
    e1_2=("lines need e1 >= 3", lambda: meta_updates.lines(sgd(0.1), 2, 5)),
    e1_half=("lines need e1 >= 3", lambda: meta_updates.lines(sgd(0.1), 3.7, 5)),
    e2_half=("lines need e1 >= 3", lambda: meta_updates.lines(sgd(0.1), 3, 5.5)),
    tolerance=("a tolerance > 0", lambda: meta_updates.lines(sgd(0.1), 5, 5, nan)),
    outer_word=("outer must be an Optimizer", lambda: meta_updates.gradient("adam")),
    outer_none=("outer must be an Optimizer", lambda: meta_updates.lines(None, 5, 5)),
    project=("project must be a function", lambda: meta_updates.gradient(sgd(0.1), box())),
    draw=("draw must be a function", lambda: meta_updates.random((0.5, 0.5, 4.0))),
    drawn=(
        "draw must give a point of shape (3,)",
        lambda: meta_updates.random(lambda replica: [0.5, 0.5]).init(tf.zeros([2, 3])),
    ),
)

LINK = distributed.Link(1e-3, 1e9)
group(
    "messages",
    no_workers=("workers must be", lambda: distributed.ring_seconds(100, 0, LINK)),
    negative_workers=("workers must be", lambda: distributed.ring_seconds(100, -2, LINK)),
    tree_of_none=("workers must be", lambda: distributed.tree_seconds(100, 0, LINK)),
    negative_bytes=("size must be", lambda: distributed.ring_seconds(-100, 4, LINK)),
    nothing_passes=(
        "bandwidth",
        lambda: distributed.ring_seconds(1, 4, LINK._replace(bandwidth=0)),
    ),
    back_in_time=("latency", lambda: distributed.tree_seconds(1, 4, LINK._replace(latency=-1))),
    weights=("weights must be", lambda: distributed.message_bytes(-5)),
    arithmetic=("arithmetic must be", lambda: distributed.step_seconds(-1, [4], 2, LINK)),
    of_a_step=("size must be", lambda: distributed.step_seconds(1, [4, -4], 2, LINK)),
)


def record(method="fixed", seed=0, accuracy=0.5, **more):
    costs = dict.fromkeys(("hypergradients", "hypergradients_saved", "seconds"), 0)
    same = costs | {"experiment": "digits", "protocol": "clean", "scale": "laptop", "stopped": None}
    same |= {"steps": 9, "plain_steps": 9, "validation_accuracy": 0.5}
    return same | {"method": method, "seed": seed, "accuracy": accuracy} | more


def table(*records):
    return tables.summarise([*records])


group(
    "tables",
    other_length=("lists of one length", lambda: tables.paired([0.5, 0.6], [0.5, 0.6, 0.7])),
    one_of_three=("lists of one length", lambda: tables.paired([0.5], [0.5, 0.6, 0.7])),
    a_number=("lists of one length", lambda: tables.paired(0.5, [0.5, 0.6, 0.7])),
    paired_nan=("ours must be finite", lambda: tables.paired([0.5, nan], [0.5, 0.6])),
    paired_words=("ours must be a number", lambda: tables.paired(["a"], ["b"])),
    none=("there are no records", table),
    experiments=(
        "mix several experiments: digits, synthetic",
        lambda: table(record(), record(seed=1, experiment="synthetic")),
    ),
    protocols=(
        "mix several protocols",
        lambda: table(record(), record("none", protocol="authors")),
    ),
    scales=("mix several scales", lambda: table(record(), record("none", scale="smoke"))),
    twice=("method fixed, seed 0 twice", lambda: table(record(), record(accuracy=0.1))),
    unknown=("the method of a record must be one of", lambda: table(record("mine"))),
    nan=("accuracy of fixed, seed 0", lambda: table(record(accuracy=nan))),
    percent=("accuracy of fixed, seed 0", lambda: table(record(accuracy=90.0))),
    no_accuracy=("accuracy of fixed, seed 0", lambda: table(record(accuracy=None))),
    seed=("the seed of a record", lambda: table(record(seed="0"))),
    missing=("a record lacks accuracy", lambda: table({"method": "fixed", "seed": 0})),
    compared=("there is no record of 'gradient'", lambda: tables.compare([record()], "gradient")),
    compared_twice=("twice", lambda: tables.compare([record(), record()], "fixed")),
    diagnosed=("there are no records", lambda: tables.diagnose([])),
    unpublished=("no published numbers", lambda: tables.beside_paper("mnist", {})),
    beside_none=("one at least", lambda: tables.beside_paper("synthetic", {})),
    beside_others=(
        "these records are of digits",
        lambda: tables.beside_paper("synthetic", {"clean": [record()]}),
    ),
)


def unit(method="half-4", regime="clean", **more):
    same = {"suite": "digits", "split": "test", "seeds": [0, 1], "accuracy": [0.5, 0.6]}
    same |= {"steps": 9, "hypergradients": [0, 0], "seconds": [0.1, 0.1], "stopped": [None, None]}
    return same | {"method": method, "regime": regime} | more


def suite(*records):
    return regimes.markdown_suite([*records])


group(
    "suites",
    none=("there are no records", suite),
    two=("mix several suites", lambda: suite(unit(), unit("labels", suite="fashion-mnist"))),
    splits=("mix several splits", lambda: suite(unit(), unit("labels", split="development"))),
    seeds=("mix several seeds", lambda: suite(unit(), unit("labels", seeds=[0, 2]))),
    twice=("regime clean, method half-4 twice", lambda: suite(unit(), unit())),
    hole=("was not run in regime", lambda: suite(unit(), unit("labels"), unit(regime="too flat"))),
    percent=("from 0 to 1 for each of 2", lambda: suite(unit(accuracy=[50, 60]))),
    fewer=("from 0 to 1 for each of 2", lambda: suite(unit(accuracy=[0.5]))),
    nan=("accuracy of half-4, clean must be finite", lambda: suite(unit(accuracy=[nan, 0.5]))),
    method=("the method of a record", lambda: suite(unit("mine"))),
    regime=("the regime of a record", lambda: suite(unit(regime="mine"))),
    no_ruler=("the ruler is a fixed setting", lambda: regimes.hindsight([unit("gradient")])),
    no_picture=("suites must be", lambda: regimes.draw_suite({})),
)

ZEROS, ONES = np.zeros(5, int), np.ones((5, 2))
LOGITS = np.random.default_rng(0).normal(size=(1, 5, 3))


def spoil(**wrong):
    return regimes.corrupt(
        {"y": ZEROS[None], "teacher_logits": LOGITS}, regimes.Regime(**wrong), [0]
    )


group(
    "regimes",
    share=("share must be", lambda: regimes.random_labels(ZEROS, 1.5, 0, 3)),
    share_nan=("share must be", lambda: regimes.random_labels(ZEROS, nan, 0, 3)),
    no_classes=("classes must be", lambda: regimes.random_labels(ZEROS, 0.5, 0, 0)),
    other_classes=("wanted labels 0 to 2", lambda: regimes.random_labels(ZEROS + 3, 0.5, 0, 3)),
    column=("y must be numbers", lambda: regimes.random_labels(ZEROS[:, None], 0.5, 0, 3)),
    one_class=("classes must be", lambda: regimes.wrong_answers(LOGITS[0, :, :1], ZEROS, 1.0, 0)),
    fewer_labels=("logits must be", lambda: regimes.wrong_answers(LOGITS[0], ZEROS[:2], 1.0, 0)),
    factor=("the factor of a regime", lambda: spoil(factor=-1.0)),
    factor_nan=("the factor of a regime", lambda: spoil(factor=nan)),
    noise=("noise of a regime", lambda: spoil(noise=1.5)),
    wrong=("wrong of a regime", lambda: spoil(wrong=-0.5)),
    size=("the size of a regime", lambda: spoil(size=0)),
    deviation=("deviation must be", lambda: regimes.normalize_logit_scale(LOGITS, -5.0)),
    deviation_nan=("deviation must be", lambda: regimes.normalize_logit_scale(LOGITS, nan)),
    logits_nan=("got 15 NaN", lambda: regimes.normalize_logit_scale(LOGITS * nan)),
    decay=("steps must be", lambda: regimes.exponential_decay(steps=0.0)),
    no_regime=("regime must be one of", lambda: regimes.label_of("mine")),
)


def together(strategy=None, teacher=LOGITS[0], y=ZEROS, x=ONES, **more):
    "A training of three steps; its labels are 0 to 2."
    import keras

    student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    knobs, rule = unconstrained(), sgd(0.1)
    move = meta_updates.gradient(sgd(0.05), knobs.project)
    state = init_train_state(student.trainable_variables, knobs.unconstrain(HALF), rule, move)
    data = {"x": np.float32(x), "y": y}
    train = {"steps": 3, "train_data": data | {"teacher_logits": np.float32(teacher)}}
    train |= {"val_data": data, "state": state, "optimizer": rule, "meta_update": move} | more
    problem = distillation(student, knobs)
    strategy = strategy or tf.distribute.OneDeviceStrategy("CPU:0")
    return distributed.train_distributed(strategy, problem, **train)


group(
    "workers",
    strategy=("strategy must be a tf.distribute.Strategy", lambda: together("mirrored")),
    steps=("steps must be", lambda: together(steps=0)),
    seed=("seed must be", lambda: together(seed=-1)),
    batch=("the train batch size must be", lambda: together(batch_sizes=(0, 0))),
    large_batch=("the validation batch size must be", lambda: together(batch_sizes=(2, 9))),
    one_batch=("batch_sizes must be two", lambda: together(batch_sizes=4)),
    lengths=("arrays of one length", lambda: together(x=ONES[:4])),
    labels=("the train set, y: wanted labels 0 to 2", lambda: together(y=ZEROS + 3)),
    labels_below=("the train set, y: wanted labels 0 to 2", lambda: together(y=ZEROS - 1)),
    x_nan=("the train set, x: got 10 NaN", lambda: together(x=nan * ONES)),
    teacher_nan=("the train set, teacher_logits: got", lambda: together(teacher=LOGITS[0] * nan)),
    no_dict=("must be a dict of arrays", lambda: together(val_data=(ZEROS, ZEROS))),
    outside=("inside of strategy.run", lambda: distributed.all_reduce_mean([tf.ones(2)])),
    outside_too=("inside of strategy.run", distributed.replica),
    digest=("must be an array, got object", lambda: checks.arrays_digest({"x": object()})),
)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(name):
    message, call = CASES[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[" * 100_000, b"1", b"[1, 2]", b"null", b'{"a": ', b'"word"']
)
def test_records_that_cannot_be_read_are_named_by_their_line(line, tmp_path):
    (tmp_path / "records.jsonl").write_bytes(json.dumps(record()).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match="line 2 of .*run the experiment again"):
        tables.read_records(tmp_path)


def test_what_is_right_is_taken():
    "The calls from which the wrong ones differ by one thing."
    assert walk()[0].shape == (11, 2) and table(record())[0]["n"] == 1
    assert suite(unit()) and spoil()["y"].shape == (1, 5)
    assert np.isfinite(together().inner_loss).all()
    for written in (HALF, tuple(HALF), list(HALF), HALF._asdict()):
        assert unconstrained().unconstrain(written).shape == (3,)


def test_a_constant_gain_has_no_p():
    found = tables.paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])  # differences equal up to rounding
    assert found["p"] is None and found["gain"] == pytest.approx(0.1)
    assert tables.paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.701])["p"] < 0.01


def test_a_folder_knows_its_training(tmp_path):
    first = together(folder=tmp_path, batch_sizes=(2, 2))
    same = together(folder=tmp_path, batch_sizes=(2, 2))
    np.testing.assert_array_equal(first.inner_loss, same.inner_loss)
    for other, what in (
        ({"x": ONES * [1, 1 + 1e-6]}, "data"),
        ({"teacher": -LOGITS[0]}, "data"),
        ({"steps": 4}, "steps"),
        ({"seed": 1}, "seed"),
        ({"state": first.state._replace(step=tf.constant(0))}, "lam"),
    ):
        with pytest.raises(ValueError, match=f"configuration.{what}"):
            together(folder=tmp_path, batch_sizes=(2, 2), **other)
