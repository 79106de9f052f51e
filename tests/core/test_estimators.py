"""Every estimator on students for text and sequences, and on knobs in other places."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from distillnb.bilevel import Bilevel
from distillnb.horizons import forward_mode, implicit, unrolled, with_tangents
from distillnb.hypergradient import (
    central_difference,
    finite_difference,
    forward_product,
    init_student,
    nested_tape,
    one_step,
    plain_step,
)
from distillnb.losses import cross_entropy
from distillnb.optimizers import adam, learned_rate, sgd
from distillnb.parametrization import unconstrained
from distillnb.problem import distillation

L = keras.layers
WORDS = keras.Input((5,), dtype="int32")
SERIES = keras.Input((4, 3), dtype="float64")


def _student(name):
    "A float64 student by name."
    keras.utils.set_random_seed(0)
    kept = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        if name == "attention":
            seen = L.MultiHeadAttention(2, 2)(SERIES, SERIES)
            return keras.Model(SERIES, L.Dense(3)(L.Flatten()(seen)))
        body = {
            "embedding": lambda: [WORDS, L.Embedding(9, 3), L.GlobalAveragePooling1D()],
            "masked LSTM": lambda: [WORDS, L.Embedding(9, 3, mask_zero=True), L.LSTM(2)],
            "GRU": lambda: [SERIES, L.GRU(2)],
            "unrolled LSTM": lambda: [SERIES, L.LSTM(2, unroll=True)],
        }[name]()
        return keras.Sequential([*body, L.Dense(3)])
    finally:
        keras.config.set_dtype_policy(kept)


def _task(name, optimizer, K=None):
    "The arguments of an estimator, float64; with K the train batches are stacked."
    model, rng = _student(name), np.random.default_rng(1)
    words = model.inputs[0].dtype == "int32"

    def batch(*n):
        x = rng.integers(0, 9, (*n, 5)) if words else rng.normal(size=(*n, 4, 3))
        labels, logits = rng.integers(0, 3, n), rng.normal(size=(*n, 3))
        return {
            "x": tf.constant(x),
            "y": tf.constant(labels),
            "teacher_logits": tf.constant(logits),
        }

    weights, others = (
        [v.numpy() for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    problem, lam = distillation(model, unconstrained()), tf.constant([0.3, -0.4, 0.9], tf.float64)
    student = init_student(weights, optimizer, others)
    return problem, optimizer, student, lam, batch(*([K, 6] if K else [6])), batch(6)


def _nudged(problem, optimizer, student, lam, train, val, K=None):
    "The hypergradient by retraining with nudged metaparameters."
    judge_lam = "lam" in problem.outer.__code__.co_varnames

    @tf.function(autograph=False)
    def arrive(lam):
        now = student
        for k in range(K or 1):
            batch = train if K is None else {name: a[k] for name, a in train.items()}
            now, _ = plain_step(problem, optimizer, now, lam, batch)
        given = {"lam": lam} if judge_lam else {}
        return problem.outer(now.weights, val, now.non_trainable, **given)

    return central_difference(lambda point: float(arrive(tf.constant(point))), lam.numpy())


def _carried(problem, optimizer, student, lam, train, val, K):
    student = with_tangents(student, lam)
    for k in range(K):
        batch = {name: a[k] for name, a in train.items()}
        step = forward_mode(problem, optimizer, student, lam, batch, val)
        student = step.student
    return step.hypergradient


def _in_graph(call):
    return tf.function(call, autograph=False)()


@pytest.mark.parametrize("name", ["embedding", "masked LSTM", "GRU", "unrolled LSTM", "attention"])
def test_students_for_text_and_sequences(name):
    task = _task(name, adam(0.01, epsilon=1e-3))
    expected = nested_tape(*task).hypergradient
    np.testing.assert_allclose(expected, _nudged(*task), rtol=1e-6, atol=1e-10)
    loop = name in ("masked LSTM", "GRU")
    for estimator in (one_step, nested_tape, forward_product()):
        eager = estimator(*task).hypergradient
        np.testing.assert_allclose(eager, expected, rtol=1e-9, atol=1e-13)
        if loop and estimator is forward_product():
            with pytest.raises(ValueError, match="take one_step or unrolled"):
                _in_graph(lambda estimator=estimator: estimator(*task).hypergradient)
            continue
        inside = _in_graph(lambda estimator=estimator: estimator(*task).hypergradient)
        np.testing.assert_allclose(inside, expected, rtol=1e-9, atol=1e-13)
    quotient = finite_difference(2, 1e-4)(*task).hypergradient
    np.testing.assert_allclose(quotient, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["embedding", "masked LSTM"])
def test_longer_sight_on_text(name):
    task = _task(name, sgd(0.3, momentum=0.5), K=3)
    expected = _nudged(*task, K=3)
    for recompute in (False, True):
        estimator = unrolled(3, recompute=recompute)
        for take in (lambda call: call(), _in_graph):
            found = take(lambda estimator=estimator: estimator(*task).hypergradient)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(_carried(*task, 3), expected, rtol=1e-6, atol=1e-10)
    if name == "masked LSTM":
        with pytest.raises(ValueError, match="take one_step or unrolled"):
            _in_graph(lambda: _carried(*task, 3))


def test_implicit_through_a_table():
    rows, target = tf.constant([0, 1, 1, 2, 3]), tf.constant([0.2, -0.3, 0.5, 1.0, 0.7], tf.float64)

    def inner(weights, lam, batch, non_trainable=()):
        error = tf.gather(weights[0], rows) - target
        penalty = tf.reduce_sum(tf.exp(lam) * weights[0] ** 2)
        return tf.reduce_sum(error**2) + penalty, non_trainable

    problem = Bilevel(inner, lambda w, batch, kept=(): tf.reduce_sum((w[0] - 1.0) ** 2) / 2)
    lam = tf.constant([0.1, -0.2, 0.3, -0.5], tf.float64)
    counts, sums = np.array([1, 2, 1, 1]), np.array([0.2, 0.2, 1.0, 0.7])
    curvature = counts + np.exp(lam)
    minimum = sums / curvature
    student = init_student([minimum], sgd(0.1))
    found = implicit(steps=20)(problem, sgd(0.1), student, lam, {}, {}).hypergradient
    by_hand = -(minimum - 1) * sums / curvature**2 * np.exp(lam)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def _with_knobs():
    """A classifier with a bias for each class, also where it is judged, and a learned rate."""
    rng = np.random.default_rng(3)
    x, y = tf.constant(rng.normal(size=(8, 4))), tf.constant(rng.integers(0, 3, 8))

    def logits(weights, lam):
        return tf.tanh(x) @ weights[0] + lam[:3]

    def inner(weights, lam, batch, non_trainable=()):
        return tf.reduce_mean(cross_entropy(y, logits(weights, lam))), non_trainable

    def outer(weights, batch, non_trainable=(), lam=None):
        return tf.reduce_mean(cross_entropy((y + 1) % 3, logits(weights, lam)))

    optimizer = learned_rate(adam(0.1, epsilon=1e-2), lambda lam: tf.exp(lam[3]))
    student = init_student([rng.normal(size=(4, 3))], optimizer)
    return (
        Bilevel(inner, outer),
        optimizer,
        student,
        tf.constant([0.3, -0.2, 0.1, -2.0], tf.float64),
    )


def test_a_bias_in_the_outer_loss_and_a_learned_rate():
    task = *_with_knobs(), {"n": tf.zeros([1])}, {}
    expected = _nudged(*task)
    assert np.all(np.abs(expected) > 1e-3)
    for estimator in (nested_tape, one_step, forward_product(), finite_difference(2, 1e-4)):
        tolerance = 1e-6 if estimator is finite_difference(2, 1e-4) else 1e-8
        for take in (lambda call: call(), _in_graph):
            found = take(lambda estimator=estimator: estimator(*task).hypergradient)
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-10)


def test_the_same_through_four_steps():
    task = *_with_knobs(), {"n": tf.zeros([4, 1])}, {}
    expected = _nudged(*task, K=4)
    for recompute in (False, True):
        found = unrolled(4, recompute=recompute)(*task).hypergradient
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
        last = unrolled(4, 2, recompute)(*task)
        middle = unrolled(2)(*task[:4], {"n": tf.zeros([2, 1])}, {}).student
        rest = *task[:2], middle, task[3], {"n": tf.zeros([2, 1])}, {}
        np.testing.assert_allclose(last.hypergradient, _nudged(*rest, K=2), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(_carried(*task, 4), expected, rtol=1e-8, atol=1e-10)


def test_implicit_adds_the_slope_of_the_outer_loss():
    def inner(weights, lam, batch, non_trainable=()):
        return tf.reduce_sum((weights[0] - 2 * lam) ** 2), non_trainable

    def outer(weights, batch, non_trainable=(), lam=None):
        return tf.reduce_sum(weights[0] * lam)

    lam = tf.constant([1.5], tf.float64)
    student = init_student([2 * lam.numpy()], sgd(0.1))
    step = implicit()(Bilevel(inner, outer), sgd(0.1), student, lam, {}, {})
    np.testing.assert_allclose(step.hypergradient, [4 * 1.5], rtol=1e-12)  # of 2 lam^2


def test_wrong_calls_are_refused():
    bowl = Bilevel(
        lambda w, lam, batch, kept=(): (tf.reduce_sum(lam * w[0] ** 2), kept),
        lambda w, batch, kept=(): tf.reduce_sum(w[0]),
    )
    student = init_student([[1.0, 2.0]], sgd(0.1))
    found = one_step(bowl, sgd(0.1), student, np.array([1.0]), {}, {}).hypergradient
    np.testing.assert_allclose(found, [-0.6], rtol=1e-6)
    for lam in (tf.constant([1]), np.array([1]), 1, "1"):
        with pytest.raises(ValueError, match="lam must hold floating numbers"):
            one_step(bowl, sgd(0.1), student, lam, {}, {})
    for wrong in (
        lambda: unrolled(2.5),
        lambda: unrolled("3"),
        lambda: unrolled(1) and unrolled(True),
        lambda: unrolled(3, 4),
        lambda: unrolled(3, recompute="no"),
        lambda: implicit(steps=2.5),
        lambda: implicit(rate="a"),
        lambda: forward_product("half"),
        lambda: forward_product(0),
        lambda: finite_difference(3),
        lambda: finite_difference(epsilon=0),
        lambda: finite_difference(epsilon=float("nan")),
        lambda: finite_difference(epsilon=-0.01),
        lambda: central_difference(lambda x: x.sum(), [1.0], 0),
        lambda: init_student([], sgd(0.1)),
        lambda: init_student([np.array([1, 2])], sgd(0.1)),
        lambda: sgd(True),
        lambda: sgd(0.1).update([tf.ones(2)], [], sgd(0.1).init([tf.ones(2)]), 0),
    ):
        with pytest.raises(ValueError):
            wrong()
