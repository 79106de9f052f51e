"""Students, teachers, labels and settings that users of Keras bring, with the right values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from distillnb import MetaDistiller, Metaparameters, Resume, box, unconstrained
from distillnb.losses import cross_entropy

L = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(size=(160, 6)).astype("float32")
W = rng.normal(size=(6, 3)).astype("float32")
Y, T = (X @ W).argmax(1).astype("int32"), 3 * X @ W
TRAIN = {"x": X[:96], "y": Y[:96], "teacher_logits": T[:96]}
HELD_OUT = (X[96:], Y[96:])
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
PLAIN = {"meta_validation": HELD_OUT, "epochs": 2, "verbose": 0}


def net(*layers, out=3, shape=(6,), dtype=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers, L.Dense(out)])


def fitted(student, train=TRAIN, teacher=None, optimizer=None, compiled=None, made=None, **options):
    one = MetaDistiller(teacher, student, **(made or {}))
    one.compile(optimizer or keras.optimizers.SGD(0.1), metrics=["accuracy"], **(compiled or {}))
    one.history = one.fit(train, **(PLAIN | options))
    return one


def test_one_logit_is_two_of_which_one_is_zero():
    yes = (X @ W[:, 0] > 0).astype("int32")
    teacher = 4 * (X @ W[:, :1])
    train = {"x": X[:96], "y": yes[:96], "teacher_logits": teacher[:96]}
    options = {"meta_validation": (X[96:], yes[96:]), "epochs": 8}
    one = fitted(net(out=1), train, **options)
    assert one.task == "binary" and one.evaluate(X[96:], yes[96:], verbose=0)[1] > 0.9

    class Two(L.Layer):
        def call(self, z):
            return tf.concat([tf.zeros_like(z), z], -1)

    keras.utils.set_random_seed(0)
    pair = keras.Sequential([keras.Input((6,)), L.Dense(1), Two()])
    train |= {"teacher_logits": np.c_[0 * teacher[:96], teacher[:96]]}
    two = fitted(pair, train, **options)
    np.testing.assert_allclose(one.student.get_weights()[0], pair.get_weights()[0], atol=1e-5)
    np.testing.assert_allclose(one.metaparameters, two.metaparameters, rtol=1e-4)
    for labels in (yes[:96, None], yes[:96].astype("float32"), yes[:96].astype(bool)):
        assert fitted(net(out=1), train | {"y": labels, "teacher_logits": teacher[:96]}, **options)


def test_several_labels():
    marks = (X @ W > 0).astype("float32")
    train = {"x": X[:96], "y": marks[:96], "teacher_logits": T[:96]}
    one = fitted(
        net(),
        train,
        optimizer=SGD(1.0),
        made={"task": "multilabel"},
        meta_validation=(X[96:], marks[96:]),
        epochs=20,
    )
    right = (one.predict(X[96:], verbose=0) > 0) == marks[96:]
    assert right.mean() > 0.85 and one.metaparameters.temperature != 4
    with pytest.raises(ValueError, match='there is task="multilabel"'):
        fitted(net(), train, meta_validation=(X[96:], marks[96:]))


@pytest.mark.parametrize(
    "route", ["one_step", "nested_tape", "finite_difference", "forward_product"]
)
def test_embedding(route):
    words = rng.integers(0, 20, (160, 7)).astype("int32")
    train = {"x": words[:96], "y": Y[:96], "teacher_logits": T[:96]}
    student = net(L.Embedding(20, 4), L.GlobalAveragePooling1D(), shape=(7,), dtype="int32")
    one = fitted(
        student,
        train,
        compiled={"hypergradient": route},
        meta_validation=(words[96:], Y[96:]),
    )
    assert np.isfinite(one.history.history["loss"]).all() and one.hypergradient_norm > 0


def test_scikit_learn_and_functions_teach():
    linear_model = pytest.importorskip("sklearn.linear_model")
    classifier = linear_model.LogisticRegression().fit(X, Y)
    logs = np.log(classifier.predict_proba(X[:96])).astype("float32")
    given = fitted(net(), TRAIN | {"teacher_logits": logs}, made={"teacher_output": "logits"})
    for teacher in (classifier, lambda x: np.log(classifier.predict_proba(np.asarray(x)))):
        asked = fitted(net(), (X[:96], Y[:96]), teacher)
        np.testing.assert_allclose(
            asked.student.get_weights()[0], given.student.get_weights()[0], atol=1e-5
        )
    stream = tf.data.Dataset.from_tensor_slices((X[:96], Y[:96])).batch(32)
    assert np.isfinite(fitted(net(), stream, classifier).history.history["loss"]).all()


def test_a_teacher_of_probabilities_is_one_of_logits():
    logits = net(L.Dense(8, "relu"))
    probable = keras.Sequential([keras.Input((6,)), logits, L.Softmax()])
    by_logits = fitted(net(), (X[:96], Y[:96]), logits)
    with pytest.warns(UserWarning, match="the teacher ends in a softmax"):
        by_rows = fitted(net(), (X[:96], Y[:96]), probable)
    np.testing.assert_allclose(
        by_rows.student.get_weights()[0], by_logits.student.get_weights()[0], atol=1e-5
    )


def test_constraints_hold():
    bound = keras.constraints.MaxNorm(0.1)
    student = net(L.Dense(8, kernel_constraint=bound, bias_constraint="non_neg"))
    fitted(student, optimizer=keras.optimizers.SGD(1.0))
    kernel, bias = student.layers[0].get_weights()
    assert np.linalg.norm(kernel, axis=0).max() < 0.1001 and bias.min() >= 0


class Own(keras.Model):
    "Somebody's own model, whose call knows of no modes."

    def __init__(self):
        super().__init__()
        self.dense, self.last = L.Dense(8, "relu"), L.Dense(3)

    def call(self, x):
        return self.last(self.dense(x))


def test_a_call_without_training():
    keras.utils.set_random_seed(0)
    own = fitted(Own(), (X[:96], Y[:96]), Own())
    assert np.isfinite(own.history.history["loss"]).all()
    assert own.predict(X[:2], verbose=0).shape == (2, 3)


class Penalty(L.Layer):
    "Adds a loss for each example, or their sum."

    def __init__(self, summed):
        super().__init__()
        self.summed = summed

    def call(self, x):
        each = 0.1 * tf.reduce_mean(x**2, -1)
        self.add_loss(tf.reduce_sum(each) if self.summed else each)
        return x


def test_a_loss_for_each_example_is_summed():
    start = keras.initializers.GlorotUniform(seed=1)
    one, two = (
        fitted(net(L.Dense(8, "tanh", kernel_initializer=start), Penalty(s))) for s in (True, False)
    )
    for ours, theirs in zip(one.student.get_weights(), two.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


class Noise(L.Layer):
    "Draws numbers, from a generator of its own or from nobody's."

    def __init__(self, own):
        super().__init__()
        self.generator = keras.random.SeedGenerator(1) if own else None

    def call(self, x, training=None):
        return x + 0.1 * keras.random.normal(tf.shape(x), seed=self.generator) if training else x


def test_draws_need_a_generator():
    assert fitted(net(Noise(True)))
    with pytest.raises(ValueError, match="draws random numbers without a generator"):
        fitted(net(Noise(False)))


def test_labels_of_tokens():
    x, y = rng.normal(size=(160, 5, 6)).astype("float32"), rng.integers(0, 3, (160, 5))
    options = {"meta_validation": (x[96:], y[96:])}
    one = fitted(net(shape=(5, 6)), (x[:96], y[:96]), net(shape=(5, 6)), **options)
    assert np.isfinite(one.history.history["loss"]).all()


def test_a_fit_that_diverges_ends_and_the_next_goes_on():
    x = X[:96].copy()
    x[70] = np.nan  # in the third batch of a stream, into which nobody has looked
    stream = tf.data.Dataset.from_tensor_slices(TRAIN | {"x": x}).batch(32)
    one = MetaDistiller(None, net())
    one.compile(SGD(0.1))
    with pytest.warns(UserWarning, match="at step 2 the inner loss was not finite, and fit ended"):
        history = one.fit(stream, **(PLAIN | {"epochs": 20}))
    assert len(history.epoch) == 1 and history.history["hypergradients_saved"] == [0]
    assert int(one.used) == 2 and all(np.isfinite(w).all() for w in one.student.get_weights())
    again = one.fit(TRAIN, **PLAIN)
    assert np.isfinite(again.history["loss"]).all() and int(one.used) == 8


def test_lists_of_numbers():
    lists = fitted(net(), {name: values.tolist() for name, values in TRAIN.items()})
    arrays = fitted(net())
    np.testing.assert_allclose(lists.student.get_weights()[0], arrays.student.get_weights()[0])


def test_a_student_of_a_fixed_batch_and_a_teacher_of_other_inputs():
    x = rng.normal(size=(160, 5, 6)).astype("float32")
    layers = [keras.Input((5, 6), batch_size=32), L.GRU(4, stateful=True), L.Dense(3)]
    one = fitted(keras.Sequential(layers), TRAIN | {"x": x[:96]}, meta_validation=(x[96:], Y[96:]))
    assert np.isfinite(one.history.history["loss"]).all()
    with pytest.raises(ValueError, match="the teacher cannot be called on these inputs"):
        fitted(net(), (X[:96], Y[:96]), net(shape=(4,)))


@pytest.mark.parametrize("route", ["one_step", "forward_product"])
def test_streams(route):
    stream = tf.data.Dataset.from_tensor_slices(TRAIN).batch(32)
    held_out = tf.data.Dataset.from_tensor_slices(HELD_OUT).batch(32)
    one = fitted(net(), stream, compiled={"hypergradient": route}, meta_validation=held_out)
    assert np.isfinite(one.history.history["loss"]).all() and one.hypergradient_norm > 0


def test_save_weights_brings_everything_back(tmp_path):
    def new(seed):
        keras.utils.set_random_seed(seed)
        layers = [L.Dense(8, "relu"), L.BatchNormalization(), L.Dropout(0.2), L.Dense(3)]
        one = MetaDistiller(None, keras.Sequential([keras.Input((6,)), *layers]))
        one.compile(Adam(0.01), lines=(3, 4))
        return one

    def go_on(one, epochs, begin=0):
        one.fit(TRAIN, **(PLAIN | {"epochs": epochs, "initial_epoch": begin}))

    one, other = new(0), new(1)
    go_on(one, 2)
    one.save_weights(tmp_path / "all.weights.h5")
    other.load_weights(tmp_path / "all.weights.h5")
    for a in (one, other):
        go_on(a, 4, 2)
    for ours, theirs in zip(one.saved_variables, other.saved_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def twice(own):
    def loss(labels, logits, teacher_logits, lam):
        return own * cross_entropy(labels, logits) + 0 * lam.beta1

    return loss


decay = keras.optimizers.schedules.CosineDecay
CHANGES = {
    "inputs": {"train": TRAIN | {"x": -X[:96]}},
    "one pixel": {"train": TRAIN | {"x": X[:96] + np.eye(96, 6, dtype="float32") * 1e-3}},
    "labels": {"train": TRAIN | {"y": (Y[:96] + 1) % 3}},
    "teacher": {"train": TRAIN | {"teacher_logits": -T[:96]}},
    "fewer examples": {"train": {k: v[:64] for k, v in TRAIN.items()}},
    "order of examples": {"train": {k: v[::-1] for k, v in TRAIN.items()}},
    "example weights": {"train": TRAIN | {"sample_weight": np.linspace(0, 1, 96)}},
    "class weights": {"class_weight": {0: 5.0}},
    "held-out inputs": {"meta_validation": (X[96:] + 1, Y[96:])},
    "held-out labels": {"meta_validation": (X[96:], (Y[96:] + 1) % 3)},
    "fewer held-out": {"meta_validation": (X[96:128], Y[96:128])},
    "batch size": {"batch_size": 16},
    "seed": {"seed": 1},
    "steps": {"steps_per_epoch": 2},
    "start": {"made": {"start": Metaparameters(0.9, 0.1, 1.0)}},
    "bounds": {"made": {"parametrization": unconstrained((0.1, 0.1, 1.0), tie="sum_to_one")}},
    "coordinates": {"made": {"parametrization": box(tie="sum_to_one")}},
    "two weights": {"made": {"parametrization": unconstrained()}},
    "loss": {"made": {"loss": twice(1.0)}},
    "rate": {"optimizer": SGD(0.2)},
    "momentum": {"optimizer": SGD(0.1, momentum=0.9)},
    "nesterov": {"optimizer": SGD(0.1, momentum=0.9, nesterov=True)},
    "kind": {"optimizer": Adam(0.1)},
    "decay": {"optimizer": SGD(0.1, weight_decay=0.01)},
    "clip": {"optimizer": SGD(0.1, clipvalue=0.5)},
    "schedule": {"optimizer": SGD(decay(0.1, 100))},
    "outer kind": {"compiled": {"meta_optimizer": SGD(0.01)}},
    "outer rate": {"compiled": {"meta_optimizer": Adam(0.02)}},
    "estimator": {"compiled": {"hypergradient": "nested_tape"}},
    "lines": {"compiled": {"lines": (3, 9)}},
    "tolerance": {"compiled": {"lines": (3, 9, 0.5)}},
    "width": {"student": (L.Dense(9, "relu"),)},
    "depth": {"student": (L.Dense(8, "relu"), L.Dense(8, "relu"))},
    "activation": {"student": (L.Dense(8, "tanh"),)},
    "dropout": {"student": (L.Dense(8, "relu"), L.Dropout(0.5, seed=1))},
    "normalisation": {"student": (L.Dense(8, "relu"), L.BatchNormalization())},
    "regulariser": {"student": (L.Dense(8, "relu", kernel_regularizer="l2"),)},
    "constraint": {"student": (L.Dense(8, "relu", kernel_constraint="non_neg"),)},
}
HARMLESS = {
    "labels as int64": {"train": TRAIN | {"y": Y[:96].astype("int64")}},
    "labels as a column": {"train": TRAIN | {"y": Y[:96, None]}},
    "more epochs": {"epochs": 3},
    "metrics": {"compiled": {"weighted_metrics": ["accuracy"]}},
}


def resumed(folder, change):
    layers = change.get("student", (L.Dense(8, "relu"),))
    options = {k: v for k, v in change.items() if k not in ("student",)}
    options = {"train": TRAIN, "callbacks": Resume(folder)} | options
    return fitted(net(*layers), **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    resumed(folder, {})
    return folder


@pytest.mark.parametrize("what", CHANGES)
def test_resume_refuses(begun, what):
    with pytest.raises(ValueError, match="has another run: configuration"):
        resumed(begun, CHANGES[what])


@pytest.mark.parametrize("what", HARMLESS)
def test_resume_goes_on(begun, what, tmp_path):
    import shutil

    shutil.copytree(begun, tmp_path / "copy")
    assert len(resumed(tmp_path / "copy", HARMLESS[what]).history.epoch) >= 2


def test_resume_sees_another_constant_in_a_loss(tmp_path):
    resumed(tmp_path, {"made": {"loss": twice(1.0)}})
    with pytest.raises(ValueError, match="configuration.loss"):
        resumed(tmp_path, {"made": {"loss": twice(100.0)}})
    with pytest.raises(ValueError, match="configuration.loss"):
        resumed(tmp_path, {"made": {"loss": twice(np.ones(1, "float32"))}})


def test_resume_says_what_it_does(tmp_path, capsys):
    resumed(tmp_path, {"verbose": 2})
    assert "the fit begins" in capsys.readouterr().out
    resumed(tmp_path, {"verbose": 2, "epochs": 3})
    assert "the fit goes on at epoch 3" in capsys.readouterr().out
