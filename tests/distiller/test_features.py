"""A loss gets what it names: layers, examples by row, columns of the batch; all through `fit`."""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from distillnb.distiller.callbacks import Resume
from distillnb.distiller.model import MetaDistiller
from distillnb.distiller.teachers import TeacherLogits
from distillnb.distiller.teachers import logits as logits_of
from distillnb.learnable_losses import (
    attention,
    attention_transfer_loss,
    fitnets_loss,
    hint,
    per_sample,
)
from distillnb.losses import cross_entropy
from distillnb.parametrization import positive
from distillnb.problem import with_features

layers = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(size=(140, 6, 6, 1)).astype("float32")
Y = (X.reshape(140, 36) @ rng.normal(size=(36, 3))).argmax(1).astype("int32")
TRAIN, VALIDATION = ({"x": X[part], "y": Y[part]} for part in (slice(0, 96), slice(96, 140)))
BOTH = [("low", "deep"), ("high", "deeper")]


def conv(width, names, seed, **options):
    "Two convolutions of a width, with batch normalisation and dropout between them."
    keras.utils.set_random_seed(seed)
    first = [
        layers.Conv2D(width, 3, activation="relu", name=names[0], **options),
        layers.BatchNormalization(**options),
    ]
    second = [
        layers.Dropout(0.2, seed=0),
        layers.Conv2D(8, 3, activation="relu", name=names[1], **options),
    ]
    return keras.Sequential(
        [keras.Input((6, 6, 1)), *first, *second, layers.Flatten(), layers.Dense(3, **options)]
    )


TEACHER = conv(5, ("deep", "deeper"), 9)


def sequential(**options):
    return conv(2, ("low", "high"), 0, **options)


def functional(**options):
    "The same net, put together by hand, and a branch on the side."
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    low = layers.Conv2D(2, 3, activation="relu", name="low", **options)(inputs)
    high = layers.Conv2D(8, 3, activation="relu", name="high", **options)(
        layers.BatchNormalization(**options)(low)
    )
    parts = [layers.Flatten()(high), layers.GlobalAveragePooling2D(**options)(low)]
    return keras.Model(inputs, layers.Dense(3, **options)(layers.Concatenate()(parts)))


def go(
    loss, pairs=(), student=None, teacher=TEACHER, train=TRAIN, compiled=None, start=None, **options
):
    "A distiller after two epochs."
    distiller = MetaDistiller(
        teacher, student or sequential(), start=start, loss=loss, layers=pairs
    )
    distiller.compile(
        **({"optimizer": keras.optimizers.SGD(0.05), "meta_optimizer": "adam"} | (compiled or {}))
    )
    distiller.fit(train, meta_validation=VALIDATION, **({"epochs": 2, "verbose": 0} | options))
    return distiller


def same(one, other, rtol=1e-4, atol=1e-5):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    for name, value in one.metaparameters.items():
        np.testing.assert_allclose(value, other.metaparameters[name], rtol=rtol, atol=atol)


CASES = [
    (sequential, fitnets_loss, BOTH),
    (functional, fitnets_loss, BOTH),
    (functional, fitnets_loss, BOTH[1:]),
    (sequential, attention_transfer_loss, BOTH),
]


@pytest.mark.parametrize("make, loss, pairs", CASES)
def test_layers_of_keras_models(make, loss, pairs):
    "Weights, averages, regressors and gamma move; the student stays a plain Keras model."
    before = make()
    distiller = go(loss, pairs, make())
    student, names = distiller.student, [v.name for v in before.variables]
    assert [v.name for v in student.variables] == names and abs(
        distiller.metaparameters["gamma"] - 0.1
    ) > 1e-4
    moved = [
        np.abs(a - b).max()
        for a, b in zip(before.get_weights(), student.get_weights(), strict=True)
        if a.dtype.kind == "f"
    ]
    assert min(moved) > 0
    extra = len(distiller.trainable_variables) - len(student.trainable_variables)
    assert extra == (2 if loss is fitnets_loss and len(pairs) == 2 else 0)


def test_save_predict_evaluate(tmp_path):
    "They see the student alone; `save_weights` has the regressors too."
    distiller = go(fitnets_loss, BOTH, compiled={"metrics": ["accuracy"]})
    distiller.save(tmp_path / "student.keras")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert alone.count_params() == sequential().count_params()
    np.testing.assert_allclose(
        alone.predict(X, verbose=0), distiller.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )
    accuracy = np.mean(logits_of(alone, X[96:]).argmax(1) == Y[96:])
    assert distiller.evaluate(VALIDATION, verbose=0)[1] == pytest.approx(accuracy)
    distiller.save_weights(tmp_path / "all.weights.h5")
    again = MetaDistiller(TEACHER, sequential(), loss=fitnets_loss, layers=BOTH)
    again.compile("sgd", "adam")
    again.load_weights(tmp_path / "all.weights.h5")
    for a, b in zip(
        distiller.regressors[0].get_weights(), again.regressors[0].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    same(distiller, again, 0, 0)


def test_hints_of_no_weight_change_nothing():
    "With the least gamma Hinton's terms decide alone; with a large one the hints do."

    def plain(
        labels,
        logits,
        teacher_logits,
        *,
        beta1: positive = 0.5,
        beta2: positive = 0.5,
        temperature: positive = 4.0,
    ):
        lam = {"beta1": beta1, "beta2": beta2, "temperature": temperature}
        return fitnets_loss(labels, logits, teacher_logits, [X[:1]], [X[:1]], **lam, gamma=0)

    still = {"meta_optimizer": keras.optimizers.SGD(1e-9)}
    start = {"beta1": 0.5, "beta2": 0.5, "temperature": 4.0}
    one, other = (
        go(plain, compiled=still, start=start),
        go(fitnets_loss, BOTH, compiled=still, start=start | {"gamma": 1e-3}),
    )
    for a, b in zip(one.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    ones, far = np.ones([96, 2, 2, 8], "float32"), []
    for gamma in (1e-3, 10.0):
        train = TRAIN | {"teacher_features": [ones]}
        loud = go(
            fitnets_loss,
            BOTH[1:],
            train=train,
            compiled=still,
            start=start | {"gamma": gamma},
            epochs=5,
        )
        far.append(np.mean(hint(with_features(loud.student, ["high"])(X[:96])["features"], [ones])))
    assert far[1] < 0.6 * far[0]


def test_features_that_come_with_the_batches():
    "In a dict or a stream, beside logits of a Cache, they are what the teacher gives in `fit`."
    outputs = with_features(TEACHER, ["deep", "deeper"])(TRAIN["x"])
    brought = TRAIN | {
        "ids": np.arange(96),
        "teacher_features": tuple(f.numpy() for f in outputs["features"]),
    }
    cache = TeacherLogits(np.arange(96), outputs["logits"].numpy())
    wanted = go(fitnets_loss, BOTH)
    same(go(fitnets_loss, BOTH, teacher=cache, train=brought), wanted)
    same(
        go(fitnets_loss, BOTH, teacher=None, train=brought | {"teacher_logits": outputs["logits"]}),
        wanted,
    )
    stream = tf.data.Dataset.from_tensor_slices(brought).batch(32)
    live = tf.data.Dataset.from_tensor_slices(TRAIN).batch(32)
    same(go(fitnets_loss, BOTH, teacher=cache, train=stream), go(fitnets_loss, BOTH, train=live))
    with pytest.raises(
        ValueError, match="give a Keras model as teacher, or batches with teacher_features"
    ):
        go(fitnets_loss, BOTH, teacher=cache, train=TRAIN | {"ids": np.arange(96)})


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.low, self.top = layers.Flatten(name="low"), layers.Dense(3)

    def call(self, x):
        return self.top(self.low(x))


def test_what_cannot_be_seen_is_refused_by_name():
    for pairs, student, teacher, message in (
        (
            [("lou", "deep")],
            None,
            TEACHER,
            "there is no layer 'lou', only low, batch_normalization",
        ),
        ([("low", "deep"), ("high", "far")], None, TEACHER, "there is no layer 'far', only deep"),
        (
            [("low", "deep")],
            Subclassed(),
            TEACHER,
            "the layers of a Subclassed cannot be seen from outside",
        ),
        ([("low", "deep")], None, Subclassed(), "the layers of a Subclassed cannot be seen"),
        ([], None, TEACHER, r"the loss reads fitted, .*; name the layers, as in layers="),
        (
            [("high", "deep")],
            None,
            TEACHER,
            "choose layers of one size, and where only the widths differ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            go(fitnets_loss, pairs, student, teacher)
    with pytest.raises(ValueError, match="choose layers of one size"):
        go(attention_transfer_loss, [("low", "deeper")])
    with pytest.raises(ValueError, match="layers are named, but the loss reads none"):
        go(per_sample(96), BOTH)

    def moody(labels, logits, teacher_logits, mood, *, beta=0.5):
        return beta * cross_entropy(labels, logits)

    with pytest.raises(ValueError, match=r"reads mood, and there are .*; put mood into each batch"):
        go(moody)


def test_ways_to_run_it():
    "Exact estimators, XLA, eager steps, several steps in a call agree; lines save hypergradients."
    exact = go(fitnets_loss, BOTH)
    for options in (
        {"hypergradient": "nested_tape"},
        {"hypergradient": "forward_product", "steps_per_execution": 3},
    ):
        same(go(fitnets_loss, BOTH, compiled=options), exact)
    same(
        go(fitnets_loss, BOTH, functional(), compiled={"jit_compile": True}),
        go(fitnets_loss, BOTH, functional()),
    )  # XLA drops out others
    one = {"epochs": 1, "steps_per_epoch": 1}
    same(
        go(fitnets_loss, BOTH, compiled={"run_eagerly": True}, **one), go(fitnets_loss, BOTH, **one)
    )
    same(go(fitnets_loss, BOTH, compiled={"hypergradient": "finite_difference"}), exact, 2e-2, 2e-3)
    walked = go(per_sample(96), compiled={"lines": (3, 2), "jit_compile": True}, epochs=4)
    assert int(walked.used) < 12 and np.isfinite(walked.metaparameters["weights"]).all()


def test_bfloat16():
    "Features are widened like logits; two epochs end near those in float32."
    same(
        go(fitnets_loss, BOTH, functional(dtype="mixed_bfloat16")),
        go(fitnets_loss, BOTH, functional()),
        0.1,
        0.03,
    )


def test_stopped_and_resumed(tmp_path):
    "One epoch, then a new distiller for the rest: the bits of three epochs, regressors included."
    for n, (loss, pairs) in enumerate(((fitnets_loss, BOTH), (per_sample(96), ()))):
        go(loss, pairs, callbacks=Resume(tmp_path / str(n), interval=0.0), epochs=1)
        later = go(loss, pairs, callbacks=Resume(tmp_path / str(n), interval=0.0), epochs=3)
        whole = go(loss, pairs, epochs=3)
        same(later, whole, 0, 0)
        assert len(later.get_weights()) == len(whole.get_weights())
        np.testing.assert_array_equal(np.stack(later.raw_path), np.stack(whole.raw_path))
    with pytest.raises(ValueError, match="configuration.layers: was"):
        go(fitnets_loss, BOTH[:1], callbacks=Resume(tmp_path / "0", interval=0.0), epochs=3)


def test_weights_of_examples():
    "By place in the train set, by a column of a stream; a weight moves if its example was seen."
    distiller = go(per_sample(96), batch_size=32, epochs=1, steps_per_epoch=2)
    weights = distiller.metaparameters["weights"]
    assert (
        weights.shape == (96,)
        and np.sum(weights == 0.5) == 0
        or np.sum(np.abs(weights - 0.5) < 1e-7) == 32
    )
    assert distiller.trajectory["weights"].shape == (3, 96)
    stream = tf.data.Dataset.from_tensor_slices(TRAIN).batch(32)
    with pytest.raises(
        ValueError, match="a stream brings the numbers 0, 1, ... of its examples as rows"
    ):
        go(per_sample(96), train=stream)
    numbered = tf.data.Dataset.from_tensor_slices(TRAIN | {"rows": np.arange(96)}).batch(32)
    assert np.ptp(go(per_sample(96), train=numbered).metaparameters["weights"]) > 0

    def by_id(labels, logits, teacher_logits, ids, *, weights: positive = (1.0,) * 200):
        return tf.gather(weights, ids) * cross_entropy(labels, logits)

    moved = (
        go(by_id, train=TRAIN | {"ids": np.arange(100, 196)}, epochs=1).metaparameters["weights"]
        != 1
    )
    assert moved[100:196].all() and not moved[:99].any()


def test_a_holdout_split_keeps_its_rows():
    "With no validation set given, the examples set aside keep their weights, and the others' move."
    distiller = MetaDistiller(TEACHER, sequential(), loss=per_sample(96))
    distiller.compile("sgd", keras.optimizers.SGD(1.0))
    with pytest.warns(UserWarning, match="19 of the 96"):
        distiller.fit(TRAIN, epochs=1, verbose=0)
    assert np.sum(np.abs(distiller.metaparameters["weights"] - 0.5) > 1e-7) == 77


def test_many_weights_have_a_short_trajectory():
    "Of more than a thousand numbers the trajectory has one entry for each epoch, not each step."
    distiller = go(per_sample(1001), epochs=3)
    assert distiller.trajectory["weights"].shape == (4, 1001)
    assert np.isfinite(distiller.history.history["weights"]).all()


def test_a_loss_of_ones_own():
    "Eight lines: labels, and a learned weight for each layer on how unlike the maps are."

    def looking(
        labels, logits, teacher_logits, features, teacher_features, *, gammas: positive = (0.1, 0.1)
    ):
        unlike = attention(features, teacher_features)
        return cross_entropy(labels, logits) + tf.reduce_sum(gammas * unlike, -1)

    learned = go(looking, BOTH).metaparameters["gammas"]
    assert learned.shape == (2,) and np.all(learned != 0.1) and learned[0] != learned[1]
