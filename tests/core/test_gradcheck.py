"""The short form of `make gradcheck`: some random problems against retraining; and laws that need
no oracle.

`python benchmarks/gradcheck.py --seed S` tells one problem at length.
"""

import sys
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from notebooks import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gradcheck

from distillnb import hypergradient
from distillnb.bilevel import Bilevel
from distillnb.horizons import unrolled
from distillnb.hypergradient import init_student, one_step
from distillnb.losses import (
    Metaparameters,
    cross_entropy,
    hinton,
    soft_cross_entropy,
    soft_divergence,
)
from distillnb.optimizers import adam, sgd

# ---- random problems

SEEDS = [
    0,
    2,
    3,
    4,
    6,
    9,
    10,
    13,
    14,
    17,
    20,
    22,
    23,
    25,
    27,
    28,
    32,
    33,
    36,
    37,
    39,
    40,
    44,
    50,
    52,
]


@pytest.mark.parametrize("seed", SEEDS)
def test_estimators_agree_with_retraining(seed):
    outcome = gradcheck.check(seed)
    notes = "\n  ".join([gradcheck.describe(gradcheck.draw(seed)), *outcome.notes])
    assert outcome.verdict == "pass", (
        f"{outcome.verdict}, {outcome.ratio:.3g} of its tolerance, seed {seed}: {notes}"
    )
    assert not outcome.error32 > gradcheck.MOST32, notes


def test_the_seeds_cover_every_kind():
    specs = [gradcheck.draw(seed) for seed in SEEDS]
    layers = {name for spec in specs for layer in spec.layers for name in layer} - {None}
    every = {*gradcheck.SMOOTH, *gradcheck.KINKED, *gradcheck.NORMS, *gradcheck.POOLS}
    sequences = {*gradcheck.SEQUENCES}
    assert layers - sequences == every | {"dense", "conv", "residual", "dropout", "mask"}
    assert layers & sequences
    assert {spec.optimizer for spec in specs} == set(gradcheck.OPTIMIZERS)
    assert {spec.schedule for spec in specs} == {None, *gradcheck.SCHEDULES}
    assert {spec.metaparameters for spec in specs} == set(gradcheck.METAPARAMETERS)
    assert {spec.K for spec in specs} == {1, 2, 5, 20}
    assert {name for spec in specs for name in gradcheck.estimators(spec)} == {
        "one_step", "nested_tape", "forward_product", "unrolled", "recompute", "forward_mode"
    }  # fmt: skip
    assert (
        len({(spec.soft, spec.t_squared) for spec in specs}) == 4
        and len({spec.compiled for spec in specs}) == 2
    )
    assert any(spec.lam[2] < 0.2 for spec in specs) and any(spec.lam[2] > 20 for spec in specs)
    assert any("weight_decay" in spec.numbers for spec in specs) and any(
        "clip" in spec.numbers for spec in specs
    )


def test_a_wrong_hypergradient_fails(monkeypatch):
    seed = next(seed for seed in SEEDS if gradcheck.draw(seed).K == 1)
    right = hypergradient.one_step

    def nearly(step):
        return step._replace(
            hypergradient=tf.nest.map_structure(lambda h: h * (1 + 1e-6), step.hypergradient)
        )

    monkeypatch.setattr(hypergradient, "one_step", lambda *arguments: nearly(right(*arguments)))
    outcome = gradcheck.check(seed)
    assert outcome.verdict == "fail" and 1 < outcome.ratio < 100


def test_the_oracle_knows_its_error():
    "A smooth slope is found to ten digits; a kink or a jump near the point is never taken for one."
    one, enough = np.ones(1), lambda value: 1e-9
    smooth = gradcheck.slope(lambda p: float(np.sin(3 * p[0])), one, one, enough)
    assert abs(smooth.value - 3 * np.cos(3)) < smooth.error < 1e-9
    for offset in (0, 1e-9, -1e-6, 1e-4, 0.01, 0.05):
        for bent in (lambda x: abs(x), lambda x: np.sign(x)):

            def kinked(p, bent=bent, offset=offset):
                return float(np.exp(p[0]) + bent(p[0] - 1 - offset))

            found = gradcheck.slope(kinked, one, one, enough)
            truth = np.e - np.sign(offset) * (bent(2) == 2)
            assert found.error > 1e-9 or abs(found.value - truth) < 1e-9, (offset, found)


# ---- laws, on a linear student: weights [W, b], logits xW + b


class Draw(NamedTuple):
    "Weights, metaparameters and batches of one random task."

    weights: list
    lam: np.ndarray  # beta1, beta2, T
    train: dict
    val: dict
    classes: int
    rng: np.random.Generator


@st.composite
def draws(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, batch, features = (
        draw(st.integers(low, high)) for low, high in ((2, 6), (1, 6), (1, 4))
    )
    beta = st.floats(0.05, 3)
    lam = np.array([draw(beta), draw(beta), np.exp(draw(st.floats(-1, 3)))])

    def pile():
        return {
            "x": rng.normal(size=(batch, features)),
            "y": rng.integers(0, classes, batch),
            "teacher_logits": 3 * rng.normal(size=(batch, classes)),
        }

    return Draw(
        [rng.normal(size=(features, classes)), rng.normal(size=classes)],
        lam,
        pile(),
        pile(),
        classes,
        rng,
    )


law = settings(max_examples=40, deadline=None, derandomize=True, database=None)
softs = st.sampled_from([soft_cross_entropy, soft_divergence])
rates = st.floats(0.01, 0.5)


def whole(lam):
    return Metaparameters(*tf.unstack(lam))


def per_class(lam):
    return Metaparameters(lam["betas"][0], lam["betas"][1], lam["temperatures"])


def same(got, wanted):
    "Equal up to the rounding of float64."
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, wanted
    )


def linear(soft, decode=whole, outer=None):
    "The problem of the linear student."

    def logits(weights, batch):
        return batch["x"] @ weights[0] + weights[1]

    def inner(weights, lam, batch, non_trainable=()):
        losses = hinton(
            batch["y"], logits(weights, batch), batch["teacher_logits"], decode(lam), soft=soft
        )
        return tf.reduce_mean(losses), non_trainable

    def judge(weights, batch, non_trainable=()):
        return tf.reduce_mean(cross_entropy(batch["y"], logits(weights, batch)))

    return Bilevel(inner, outer or judge)


def step(problem, optimizer, weights, lam, train, val):
    "One step of a fresh student."
    tensors = tf.nest.map_structure(tf.constant, (lam, train, val))
    return one_step(problem, optimizer, init_student(weights, optimizer), *tensors)


def slopes(problem, weights, lam, batch, outer=False):
    "The gradient of the inner or the outer loss in the weights, by a plain tape."
    weights, lam, batch = tf.nest.map_structure(tf.constant, (weights, lam, batch))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = problem.outer(weights, batch) if outer else problem.inner(weights, lam, batch)[0]
    return tape.gradient(loss, weights)


@law
@given(draws(), softs)
def test_the_inner_gradient_is_linear_in_the_betas(d, soft):
    "The inner loss is beta1 times one term plus beta2 times another, and so is its gradient."

    def at(b1, b2):
        return slopes(linear(soft), d.weights, np.array([b1, b2, d.lam[2]]), d.train)

    same(
        at(*d.lam[:2]),
        [d.lam[0] * a + d.lam[1] * b for a, b in zip(at(1, 0), at(0, 1), strict=True)],
    )


@law
@given(draws(), softs, rates)
def test_betas_times_hypergradient_is_the_move_seen_by_the_outer_loss(d, soft, rate):
    """w' = w - rate (beta1 a + beta2 b), so beta1 dw'/dbeta1 + beta2 dw'/dbeta2 = w' - w (Euler's
    identity).
    """
    problem = linear(soft)
    found = step(problem, sgd(rate), d.weights, d.lam, d.train, d.val)
    v = slopes(problem, [w.numpy() for w in found.student.weights], d.lam, d.val, outer=True)
    seen = sum(
        np.sum(a * (new - old))
        for a, new, old in zip(v, found.student.weights, d.weights, strict=True)
    )
    same(np.dot(d.lam[:2], found.hypergradient[:2]), seen)


@law
@given(draws(), softs, rates, st.floats(0.1, 3), st.floats(0.1, 3))
def test_under_a_linear_outer_loss_the_betas_do_not_feel_each_other(d, soft, rate, more, less):
    """The outer gradient c is then the same wherever the step ends: h = -rate [c a, c b, beta2 c
    db/dT].
    """
    c = [d.rng.normal(size=w.shape) for w in d.weights]

    def outer(weights, batch, non_trainable=()):
        return tf.add_n([tf.reduce_sum(a * w) for a, w in zip(c, weights, strict=True)])

    def at(lam):
        return step(
            linear(soft, outer=outer), sgd(rate), d.weights, lam, d.train, d.val
        ).hypergradient

    same(at(d.lam * [more, less, 1]), at(d.lam) * np.array([1, 1, less]))


@law
@given(draws(), softs, rates, st.floats(0.2, 5))
def test_a_larger_rate_is_larger_betas(d, soft, rate, s):
    """SGD only sees rate times beta: the same step, and the slope in a beta that is s times
    smaller is s times larger.
    """

    def at(rate, lam):
        return step(linear(soft), sgd(rate), d.weights, lam, d.train, d.val)

    one, other = at(rate, d.lam), at(rate * s, d.lam / [s, s, 1])
    same(other.student.weights, one.student.weights)
    same(other.hypergradient, one.hypergradient * np.array([s, s, 1]))


@law
@given(draws(), softs, rates, st.floats(-20, 20), st.booleans())
def test_a_constant_added_to_logits_changes_nothing(d, soft, rate, shift, teacher):
    """Softmax forgets a constant common to all classes: of an example's teacher logits, or of the
    student's bias.
    """

    def at(weights, train):
        return step(linear(soft), sgd(rate), weights, d.lam, train, d.val)

    one = at(d.weights, d.train)
    each = shift * np.linspace(0.5, 1, len(d.train["y"]))[:, None]
    train = d.train | {"teacher_logits": d.train["teacher_logits"] + each * teacher}
    other = at([d.weights[0], d.weights[1] + shift * (not teacher)], train)
    same(
        [other.hypergradient, other.inner_loss, other.outer_loss],
        [one.hypergradient, one.inner_loss, one.outer_loss],
    )


@law
@given(
    draws(), softs, st.sampled_from([sgd(0.2), adam(0.01, epsilon=1e-3)]), st.sampled_from([1, 2])
)
def test_renamed_classes_rename_their_hypergradients(d, soft, optimizer, K):
    """Nothing in the losses or in the update knows a class by its number: scalars stay, per-class
    slopes are permuted.
    """
    new = d.rng.permutation(d.classes)  # new[j] is the old number of the class now called j
    name = np.argsort(new)

    def rename(b):
        return {
            "x": b["x"],
            "y": name[b["y"]],
            "teacher_logits": b["teacher_logits"][:, new],
        }

    T = d.lam[2] * np.exp(0.3 * d.rng.normal(size=d.classes))

    def at(weights, T, train, val):
        tensors = (
            {"betas": d.lam[:2], "temperatures": T},
            {k: np.stack([a] * K) for k, a in train.items()},
            val,
        )
        tensors = tf.nest.map_structure(tf.constant, tensors)
        return unrolled(K)(
            linear(soft, per_class), optimizer, init_student(weights, optimizer), *tensors
        ).hypergradient

    one = at(d.weights, T, d.train, d.val)
    other = at([w[..., new] for w in d.weights], T[new], rename(d.train), rename(d.val))
    same(other, {"betas": one["betas"], "temperatures": tf.gather(one["temperatures"], new)})


@law
@given(draws(), softs, st.sampled_from([sgd(0.2), adam(0.01, epsilon=1e-3)]))
def test_the_order_of_examples_does_not_matter(d, soft, optimizer):
    "Both losses are means over the batch."

    def mix(b):
        return dict(
            zip(
                b,
                (a[order] for order in [d.rng.permutation(len(b["y"]))] for a in b.values()),
                strict=True,
            )
        )

    one, other = (
        step(linear(soft), optimizer, d.weights, d.lam, *b)
        for b in ((d.train, d.val), (mix(d.train), mix(d.val)))
    )
    same(
        [other.hypergradient, other.inner_loss, other.outer_loss, other.student.weights],
        [one.hypergradient, one.inner_loss, one.outer_loss, one.student.weights],
    )


@tf.function(autograph=False)
def _replicas(weights, lam, train, val):
    problem, optimizer = linear(soft_cross_entropy), adam(0.01, epsilon=1e-3)

    def alone(one):
        weights, *others = one
        found = one_step(problem, optimizer, init_student(weights, optimizer), *others)
        return found.hypergradient, found.inner_loss, found.outer_loss, found.student.weights

    return tf.vectorized_map(alone, (weights, lam, train, val))


@law
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_replicas_do_not_feel_each_other(seed, order):
    "Replicas are stacked on a leading axis and share nothing: permuting them permutes all results."
    rng = np.random.default_rng(seed)

    def normal():
        return rng.normal(size=(4, 5, 3))

    def batch():
        return {"x": normal(), "y": rng.integers(0, 3, (4, 5)), "teacher_logits": normal()}

    stacked = (
        [rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3))],
        rng.uniform(0.2, 2, (4, 3)),
        batch(),
        batch(),
    )

    def among(order):
        return _replicas(*tf.nest.map_structure(lambda a: tf.constant(a[list(order)]), stacked))

    same(among(order), tf.nest.map_structure(lambda a: tf.gather(a, order), among(range(4))))
