"""Whatever a Keras user brings, `fit` takes it, or says why not; and a kill in the middle of an
epoch changes no bit.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from distillnb.distiller.callbacks import LearnedSchedule, Resume
from distillnb.distiller.model import MetaDistiller
from distillnb.distiller.teachers import TeacherLogits
from distillnb.distiller.teachers import logits as logits_of
from distillnb.lab.models import mlp
from distillnb.meta_updates import Lines

layers, callbacks = keras.layers, keras.callbacks
rng = np.random.default_rng(0)
X = rng.normal(size=(150, 6)).astype("float32")
RIGHT = (X @ rng.normal(size=(6, 3))).astype("float32")
Y = RIGHT.argmax(1).astype("int32")
IDS = np.arange(150)
TRAIN, HELD_OUT, TEST = (
    (X[part], Y[part]) for part in (slice(0, 96), slice(96, 124), slice(124, 150))
)
SHOWN = {"beta1", "beta2", "temperature", "meta_loss", "hypergradients_saved", "hypergradient_norm"}
LESSON = {"x": TRAIN[0], "y": TRAIN[1], "teacher_logits": 3 * RIGHT[:96]}


@pytest.fixture(scope="module")
def teacher():
    model = mlp((6,), (8,), 3, seed=5)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*TRAIN, epochs=20, verbose=0)
    return model


def net(*extra, **options):
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(8, "relu", **options), *extra, layers.Dense(3, **options)]
    return keras.Sequential([keras.Input((6,)), *parts])


def go(distiller, train=LESSON, held_out=HELD_OUT, compiled=None, **options):
    "Two epochs of a compiled distiller; the History."
    distiller.compile(**({"optimizer": "sgd", "metrics": ["accuracy"]} | (compiled or {})))
    return distiller.fit(train, meta_validation=held_out, **({"epochs": 2, "verbose": 0} | options))


def after(train=LESSON, held_out=HELD_OUT, student=None, teacher=None, **options):
    "The student's weights, the metaparameters and the last logs of two epochs."
    distiller = MetaDistiller(teacher, student or net())
    history = go(distiller, train, held_out, **options)
    logs = {name: values[-1] for name, values in history.history.items()}
    return (
        [v.numpy() for v in distiller.student.trainable_variables],
        distiller.metaparameters,
        logs,
    )


def same(one, other, **tolerance):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))
    np.testing.assert_allclose(one[1], other[1], **(tolerance or {"rtol": 1e-5}))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=0),
            layers.Dense(3),
        ]

    def call(self, x, training=None):
        for part in self.parts:
            x = (
                part(x, training=training)
                if isinstance(part, (layers.BatchNormalization, layers.Dropout))
                else part(x)
            )
        return x


def functional():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(8, "relu")(inputs)))


def sequential():
    return net(layers.BatchNormalization(), layers.Dropout(0.2, seed=0))


@pytest.mark.parametrize("student", [functional, Subclassed, sequential])
def test_students(student):
    """Functional, subclassed and sequential students learn, BatchNorm's averages move, and so do
    the metaparameters.
    """
    model = student()
    weights, lam, logs = after(
        student=model, compiled={"optimizer": keras.optimizers.Adam(0.02)}, epochs=10
    )
    assert logs["accuracy"] > 0.6 and abs(lam.temperature - 4) > 0.05
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            assert np.abs(layer.moving_mean.numpy()).max() > 0.01


def test_several_inputs():
    "Two named inputs give what their concatenation gives."
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    keras.utils.set_random_seed(0)
    two = keras.Model({"a": a, "b": b}, layers.Dense(3)(layers.Concatenate()([a, b])))
    one = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    one.set_weights(two.get_weights())

    def cut(x):
        return {"a": x[:, :3], "b": x[:, 3:]}

    apart = after(LESSON | {"x": cut(TRAIN[0])}, {"x": cut(HELD_OUT[0]), "y": HELD_OUT[1]}, two)
    same(apart, after(student=one))


def test_bfloat16_follows_float32_and_float16_is_refused():
    same(after(student=net(dtype="mixed_bfloat16")), after(), rtol=0.1, atol=0.02)
    with pytest.raises(ValueError, match="use mixed_bfloat16 or float32"):
        MetaDistiller(None, net(dtype="mixed_float16"))


def test_labels_and_weights():
    """One-hot is integers; a weight of two is two; class weights are weights; a weight of nothing
    is not seen.
    """
    one_hot = after(LESSON | {"y": np.eye(3)[TRAIN[1]]}, (HELD_OUT[0], np.eye(3)[HELD_OUT[1]]))
    same(one_hot, after())
    by_class, weights = {0: 1.0, 1: 3.0}, np.where(TRAIN[1] == 1, 3.0, 1.0).astype("float32")
    same(after(class_weight=by_class), after(sample_weight=weights))
    same(
        after(sample_weight=np.full(96, 2.0, "float32")),
        after(compiled={"optimizer": keras.optimizers.SGD(0.02)}),
    )
    bad = LESSON["teacher_logits"].copy()
    bad[:10] = 100
    blind = (np.arange(96) >= 10).astype("float32")
    same(after(LESSON | {"teacher_logits": bad}, sample_weight=blind), after(sample_weight=blind))


def test_penalties_of_layers_count():
    "A kernel regulariser pulls as it does in Keras: with the labels alone the weights are Keras's."

    def make():
        return net(kernel_regularizer=keras.regularizers.L2(0.1))

    model, plain = make(), make()

    def labels_only(y, z, t, lam):
        return keras.ops.sparse_categorical_crossentropy(y, z, from_logits=True)

    go(
        MetaDistiller(None, model, loss=labels_only),
        batch_size=96,
        compiled={"optimizer": keras.optimizers.SGD(0.1)},
    )
    plain.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    plain.fit(*TRAIN, batch_size=96, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Ordered(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {name: value[32 * i : 32 * (i + 1)] for name, value in LESSON.items()}


def test_streams():
    """A Dataset and a PyDataset of the same batches give the same; a stream asks for what nobody
    can know.
    """
    stream = tf.data.Dataset.from_tensor_slices(LESSON).batch(32)
    held_out = tf.data.Dataset.from_tensor_slices(HELD_OUT).batch(20)
    same(after(stream, held_out), after(Ordered(), held_out))
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        after(stream.filter(lambda batch: True), held_out)
    with pytest.raises(ValueError, match="give meta_validation"):
        after(stream, None)
    assert after(stream.filter(lambda batch: True), held_out, steps_per_epoch=3)[2]["loss"] > 0


def test_the_teacher_in_three_ways(teacher):
    "Run beside the student, asked once, looked up by id: the same answers."
    before = teacher.get_weights()
    plain = {"x": TRAIN[0], "y": TRAIN[1], "ids": IDS[:96]}
    table = TeacherLogits(IDS[::-1], logits_of(teacher, X[::-1]))
    stream = tf.data.Dataset.from_tensor_slices(plain).batch(32)
    held_out = {"x": HELD_OUT[0], "y": HELD_OUT[1], "ids": IDS[96:124]}
    same(after(plain, held_out, teacher=teacher), after(plain, held_out, teacher=table))
    same(after(stream, held_out, teacher=teacher), after(stream, held_out, teacher=table))
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    with pytest.raises(ValueError, match="there is no teacher"):
        after(TRAIN)


def test_meta_validation():
    "Split off with a warning; refused where it overlaps the train or the test set."
    with pytest.warns(UserWarning, match="19 of the 96 train examples"):
        after(held_out=None)
    with pytest.raises(ValueError, match="shares 20 inputs with the train set"):
        after(held_out=(X[:20], Y[:20]))
    with pytest.raises(ValueError, match="with the validation_data set"):
        after(validation_data=HELD_OUT)


def test_routes_and_optimizers():
    """The exact routes agree, the difference nearly; optimizers are the pure rules;
    others are refused by name.
    """
    exact = after()
    same(after(compiled={"hypergradient": "nested_tape"}), exact)
    same(after(compiled={"hypergradient": "forward_product"}), exact)
    same(after(compiled={"hypergradient": "finite_difference"}), exact, rtol=1e-2, atol=1e-3)
    same(after(compiled={"jit_compile": True}), exact)
    same(after(compiled={"run_eagerly": True}), exact)
    same(after(compiled={"steps_per_execution": 3}), exact)
    for name in ("adam", "adamw", "rmsprop"):
        assert np.isfinite(after(compiled={"optimizer": name})[2]["loss"])
    with pytest.raises(ValueError, match="Ftrl has no pure rule"):
        after(compiled={"optimizer": "ftrl"})


def test_callbacks_of_keras(tmp_path):
    """EarlyStopping, both ModelCheckpoints, CSVLogger and learning-rate callbacks do what they do
    elsewhere.
    """
    rates = []

    def keep(model):
        return rates.append(float(model.optimizer.learning_rate))

    distiller = MetaDistiller(None, net())
    many = [
        callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        callbacks.CSVLogger(tmp_path / "log.csv"),
        callbacks.ModelCheckpoint(tmp_path / "student.keras"),
        callbacks.ModelCheckpoint(tmp_path / "all.weights.h5", save_weights_only=True),
        callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        callbacks.LambdaCallback(on_epoch_end=lambda *_: keep(distiller)),
    ]
    history = go(distiller, validation_data=TEST, epochs=3, callbacks=many)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert set(rows[0]) >= SHOWN and len(rows) == 3
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.1 / 3], rtol=1e-6)
    alone = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(
        alone.predict(X[:5], verbose=0), distiller.predict(X[:5], verbose=0), rtol=1e-5, atol=1e-6
    )
    again = MetaDistiller(None, net())
    again.compile("sgd", metrics=["accuracy"])
    again.load_weights(tmp_path / "all.weights.h5")
    assert again.metaparameters == distiller.metaparameters
    loss, accuracy = distiller.evaluate(*TEST, verbose=0)
    assert (
        accuracy == pytest.approx(np.mean(logits_of(alone, TEST[0]).argmax(1) == TEST[1]))
        and len(history.epoch) == 3
    )


def test_the_progress_bar_shows_the_metaparameters(capsys):
    go(MetaDistiller(None, net()), verbose=1)
    last = capsys.readouterr().out.splitlines()[-1]
    for name in ("beta1", "beta2", "temperature", "meta_loss", "accuracy"):
        assert f"{name}: " in last
    assert "3/3" in last


def test_resume_begins_at_the_epoch_that_was_asked_for(tmp_path):
    history = go(
        MetaDistiller(None, net()), callbacks=Resume(tmp_path / "fit"), epochs=5, initial_epoch=3
    )
    plain = go(MetaDistiller(None, net()), epochs=5, initial_epoch=3)
    assert (
        history.epoch == plain.epoch == [3, 4] and history.history["loss"] == plain.history["loss"]
    )


def test_a_learning_rate_that_changes_is_obeyed():
    "A rate of a thousandth from the second epoch on: the weights hardly move any more."
    distiller, seen = MetaDistiller(None, net()), []
    watch = callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(distiller.student.get_weights()[0])
    )
    go(
        distiller,
        epochs=2,
        callbacks=[callbacks.LearningRateScheduler(lambda epoch: (0.1, 1e-4)[epoch]), watch],
        compiled={"optimizer": keras.optimizers.SGD(0.1)},
    )
    assert np.abs(seen[1] - seen[0]).max() < 1e-2 * np.abs(seen[0] - net().get_weights()[0]).max()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 6)
    assert np.isfinite(after(compiled={"optimizer": keras.optimizers.SGD(schedule)})[2]["loss"])


def test_nan_is_met_and_said():
    """TerminateOnNaN stops; without it the last finite weights stay, and a warning says where it
    happened.
    """
    huge = LESSON | {"x": TRAIN[0] * np.float32(1e30)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distiller = MetaDistiller(None, net())
        history = go(distiller, huge, epochs=5, callbacks=callbacks.TerminateOnNaN())
    assert len(history.epoch) == 1
    with pytest.warns(UserWarning, match="was not finite, and fit ended: the student is as it was"):
        weights, *_ = after(huge)
    assert all(np.isfinite(w).all() for w in weights)


def test_tensorboard(tmp_path):
    """Metaparameters, the length of the hypergradient and what was saved are scalars in the event
    file.
    """
    pytest.importorskip("tensorboard")
    go(
        MetaDistiller(None, net()),
        callbacks=callbacks.TensorBoard(tmp_path),
        compiled={"lines": (3, 3)},
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    names = {name.removeprefix("epoch_") for name in events.Tags()["tensors"]}
    assert names >= SHOWN


def test_replicas_are_refused():
    "Under a strategy of two devices nothing would add their gradients up: it is said, not done."
    code = """
import keras, tensorflow as tf
from distillnb import MetaDistiller
cpu, two = tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    MetaDistiller(None, keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: 2 replicas would each train a student of their own; make the" in done.stderr


def test_teacher_first():
    "A student with more weights than its teacher gets a warning; what is no model is refused."
    small, large, table = net(), mlp((6,), (30,), 3), TeacherLogits(IDS, RIGHT)
    with pytest.warns(UserWarning, match="the student has 303 weights, more than its teacher"):
        MetaDistiller(small, large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MetaDistiller(large, small)
        MetaDistiller(table, small)
    with pytest.raises(ValueError, match="student must be a Keras model, got TeacherLogits"):
        MetaDistiller(small, table)
    with pytest.raises(ValueError, match="student must be a Keras model, got NoneType"):
        MetaDistiller(small, None)
    with pytest.raises(
        ValueError, match="teacher must be a Keras model, TeacherLogits, a function"
    ):
        MetaDistiller(RIGHT, small)
    with pytest.raises(ValueError, match="the loss is given to MetaDistiller"):
        MetaDistiller(large, small).compile("sgd", loss="mse")


def test_lines():
    "A tuple and `Lines` are the same; a line that may make no error is left at once."
    wanted = after(compiled={"lines": (3, 3)}, epochs=6)
    for lines in (Lines(3, 3), (3, 3, 0.25), [3, 3]):
        same(after(compiled={"lines": lines}, epochs=6), wanted, rtol=0, atol=0)
    strict = after(compiled={"lines": Lines(3, 3, tolerance=1e-9)}, epochs=6)
    assert strict[2]["hypergradients_saved"] < wanted[2]["hypergradients_saved"] == 9
    for wrong in (3, (3,), (3, 3, 0.25, 1)):
        with pytest.raises(ValueError, match="lines must be Lines"):
            MetaDistiller(None, net()).compile(lines=wrong)
    with pytest.raises(ValueError, match="lines need e1 >= 3"):
        MetaDistiller(None, net()).compile(lines=(2, 3))


def test_plot():
    "A point for each call, steps on the axis, the temperature in a panel of its own."
    distiller = MetaDistiller(None, net())
    go(distiller, compiled={"steps_per_execution": 3})
    left, right = distiller.plot().axes
    assert [line.get_label() for line in left.lines] == ["beta1", "beta2"]
    np.testing.assert_array_equal(right.lines[0].get_xdata(), [0, 3, 6])
    drawn = right.lines[0].get_ydata()
    np.testing.assert_allclose(drawn, distiller.trajectory["temperature"], rtol=1e-6)


class StopAtEnd(callbacks.Callback):
    "Ctrl-C at the end of an epoch."

    def __init__(self, at=None):
        super().__init__()
        self._at = at

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self._at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_first", [True, False])
def test_a_stop_at_the_end_of_an_epoch_loses_no_line(tmp_path, stop_first, capsys):
    "The epoch is counted once, by EarlyStopping too, and is in the history."

    def fit(*resume, at=None):
        distiller = MetaDistiller(None, net())
        early = callbacks.EarlyStopping("loss", patience=2, min_delta=10.0)
        given = [StopAtEnd(at), early] if stop_first else [early, StopAtEnd(at)]
        history = go(distiller, epochs=6, validation_data=TEST, callbacks=[*given, *resume])
        return [*distiller.get_weights(), *distiller.raw_path], history

    with contextlib.suppress(KeyboardInterrupt):
        fit(Resume(tmp_path), at=1)
    assert "goes on from here" in capsys.readouterr().out
    (state, history), (wanted, whole) = fit(Resume(tmp_path)), fit()
    assert history.history == whole.history and history.epoch == whole.epoch == [0, 1, 2]
    for one, other in zip(state, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fit_that_fails_lets_go_of_its_folder(tmp_path):
    "The corrected call in the same process gets the folder."
    distiller = MetaDistiller(None, net())
    with pytest.raises(ValueError, match="there is no teacher"):
        go(distiller, TRAIN, callbacks=Resume(tmp_path))
    assert len(go(distiller, callbacks=Resume(tmp_path)).epoch) == 2


def test_compiled_twice_is_as_compiled_once():
    distiller = MetaDistiller(None, net())
    go(distiller)
    size = len(distiller.get_weights())
    go(distiller)
    assert len(distiller.get_weights()) == size


def test_keras_distiller_follows_a_schedule():
    "Its numbers are those of the middle of each epoch, and its loss has seen them."
    schedule = LearnedSchedule(
        {"beta1": [0.8, 0.2], "beta2": [0.2, 0.8], "temperature": [1.0, 5.0]}
    )
    term = keras.distillation.LogitsDistillation(3.0, keras.losses.KLDivergence())
    seen = []

    def fit(by, temperature, share):
        theirs = keras.distillation.Distiller(net(), net(), term, student_loss_weight=share)
        term.temperature = temperature
        theirs.compile(
            keras.optimizers.SGD(0.1),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        theirs.fit(*TRAIN, batch_size=96, shuffle=False, epochs=1, verbose=0, callbacks=by)
        seen.append([term.temperature, theirs.student_loss_weight])
        return theirs.student.get_weights()

    for a, b in zip(fit(schedule, 3.0, 0.5), fit([], 3.0, 0.5), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # half way: 0.5, 0.5, 3
    np.testing.assert_allclose(seen[0], [3.0, 0.5])
    assert not np.allclose(fit(schedule, 3.0, 0.5)[0], fit([], 3.0, 0.9)[0])


def train_in(folder):
    """What `test_kill` kills: forty epochs of a student with Dropout and BatchNorm, saved as often
    as possible.
    """
    distiller = MetaDistiller(None, net(layers.BatchNormalization(), layers.Dropout(0.3, seed=0)))
    early = callbacks.EarlyStopping("val_loss", patience=60, restore_best_weights=True)
    saved = [Resume(folder, interval=0.0)] if folder else []
    history = go(
        distiller,
        validation_data=TEST,
        epochs=40,
        callbacks=[early, *saved],
        batch_size=8,
        compiled={"optimizer": keras.optimizers.Adam(0.01), "lines": (5, 10)},
    )
    return [*distiller.get_weights(), *distiller.raw_path], history.history


def test_kill(tmp_path):
    """kill -9 in the middle of epochs, at random times: `fit` called again ends with the bits of
    an undisturbed one.
    """
    folder, draw, seen = tmp_path / "killed", np.random.default_rng(0), set()
    command = [sys.executable, __file__, folder]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=Path(__file__).parent)
        while seen >= (
            saved := set(folder.glob("states/*.json"))
        ):  # it has got further than the one before
            assert process.poll() is None, "the training ended before it was killed"
            time.sleep(0.01)
        seen |= saved
        time.sleep(draw.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    arrays, history = train_in(folder)
    wanted, wanted_history = train_in(None)
    assert history == wanted_history
    for one, other in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


if __name__ == "__main__":
    train_in(sys.argv[1])
