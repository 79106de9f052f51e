"""What the redesign must not change: the bits of short trainings. `python tests/bits.py` records
them in tests/bits.json.

Bits depend on the processor, the versions, the threads and oneDNN, so the record says where it was
made, and test_bits.py
compares on such a machine only. Both can go when the redesign is done.
"""

import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

RECORD = Path(__file__).with_name("bits.json")

from distillnb.store import reproducible

ENVIRONMENT = reproducible(threads=1)

import contextlib

import keras
import numpy as np
import tensorflow as tf

from distillnb import (
    bilevel_step,
    distributed,
    horizons,
    hypergradient,
    learnable_losses,
    meta_updates,
    training,
)
from distillnb.distiller import callbacks
from distillnb.distiller.model import MetaDistiller
from distillnb.lab.models import mlp
from distillnb.losses import Metaparameters
from distillnb.optimizers import adam, cosine, sgd
from distillnb.parametrization import unconstrained
from distillnb.problem import distillation

layers = keras.layers
START = Metaparameters(0.5, 0.5, 4.0)


def draw(rng, *lead, features=6, classes=3):
    teacher_logits = rng.normal(size=(*lead, classes)).astype("float32") * 3
    return {
        "x": rng.normal(size=(*lead, features)).astype("float32"),
        "y": teacher_logits.argmax(-1).astype("int32"),
        "teacher_logits": teacher_logits,
    }


def piles(seed, *lead, **shape):
    rng = np.random.default_rng(seed)
    train, validation = draw(rng, *lead, 60, **shape), draw(rng, *lead, 40, **shape)
    return train, {"x": validation["x"], "y": validation["y"]}


def path_of(run):
    return [
        run.lam,
        run.inner_loss,
        np.nan_to_num(run.outer_loss),
        run.hypergradients,
        *run.state.student.weights,
    ]


def stacked(
    move,
    estimator=hypergradient.one_step,
    order="shared",
    tangents=False,
    optimizer=None,
    **options,
):
    keras.utils.set_random_seed(0)
    coordinates, optimizer = unconstrained(), optimizer or sgd(0.1, momentum=0.9)
    models = [mlp((6,), (5,), 3, seed=seed) for seed in range(3)]
    weights = [
        np.stack([v.numpy() for v in vs])
        for vs in zip(*(m.trainable_variables for m in models), strict=True)
    ]
    lam = tf.stack([coordinates.unconstrain(START._replace(temperature=1.0 + r)) for r in range(3)])
    move = move(coordinates)
    state = bilevel_step.init_train_state(weights, lam, optimizer, move, (), tangents)
    problem = distillation(models[0], coordinates, t_squared=True)
    options = {
        "batch_sizes": (16, 8),
        "seeds": [0, 1, 2],
        "order": order,
        "estimator": estimator,
    } | options
    return path_of(training.train(problem, optimizer, move, state, *piles(1, 3), 60, **options))


def lines(coordinates):
    return meta_updates.lines(adam(0.05), 5, 15, 0.25, coordinates.project)


def gradient(coordinates):
    return meta_updates.gradient(adam(0.05), coordinates.project)


def conv():
    keras.utils.set_random_seed(0)
    body = [
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
    ]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *body,
            layers.Flatten(),
            layers.Dropout(0.2, seed=1),
            layers.Dense(3),
        ]
    )
    train, validation = piles(2, features=64)
    shaped = [pile | {"x": pile["x"].reshape(-1, 8, 8, 1)} for pile in (train, validation)]
    coordinates, rule = unconstrained(tie="sum_to_one"), adam(cosine(0.01, 40))
    move = lines(coordinates)
    weights, kept = (
        [v.numpy() for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    state = bilevel_step.init_train_state(weights, coordinates.unconstrain(START), rule, move, kept)
    return path_of(
        training.train(
            distillation(model, coordinates), rule, move, state, *shaped, 40, (16, 16), 3
        )
    )


def net(seed=0):
    keras.utils.set_random_seed(seed)
    body = [
        layers.Dense(8, name="wide"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(0.3, seed=4),
    ]
    return keras.Sequential([keras.Input((6,)), *body, layers.Dense(3)])


def distiller(epochs=4, compiled=None, student=None, teacher=None, **options):
    train, validation = piles(3)
    student = student or net()
    if teacher is not None:
        train = {"x": train["x"], "y": train["y"]}
    model = MetaDistiller(
        teacher, student, **{k: v for k, v in options.items() if k in ("loss", "layers", "start")}
    )
    model.compile(
        **(
            {"optimizer": keras.optimizers.Adam(0.01), "lines": (5, 10), "metrics": ["accuracy"]}
            | (compiled or {})
        )
    )
    fitting = {k: v for k, v in options.items() if k in ("callbacks",)}
    history = model.fit(
        train,
        meta_validation=validation,
        batch_size=16,
        epochs=epochs,
        seed=5,
        verbose=0,
        **fitting,
    )
    values = [np.array(v) for _, v in sorted(history.history.items())]
    return [*model.get_weights(), *(np.array(v) for v in model.trajectory.values()), *values]


def resumed():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 6:
                raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            distiller(callbacks=[callbacks.Resume(folder), Stop()])
        return distiller(callbacks=[callbacks.Resume(folder)])


def hidden():
    teacher = keras.Sequential(
        [keras.Input((6,)), layers.Dense(10, "relu", name="broad"), layers.Dense(3)]
    )
    return distiller(
        2, teacher=teacher, loss=learnable_losses.fitnets_loss, layers=[("wide", "broad")]
    )


def together():
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices[:2]])
    keras.utils.set_random_seed(0)
    coordinates, model, rule = unconstrained(), mlp((6,), (5,), 3, seed=0), adam(0.01)
    move = lines(coordinates)
    state = bilevel_step.init_train_state(
        [v.numpy() for v in model.trainable_variables], coordinates.unconstrain(START), rule, move
    )
    run = distributed.train_distributed(
        strategy, distillation(model, coordinates), rule, move, state, *piles(5), 30, (16, 8), 2
    )
    return path_of(run)


def experiment(**options):
    from distillnb.lab.experiments import run_experiment

    records = run_experiment(scale="smoke", progress=False, **options)
    curves = [record["curve"] for record in records]
    numbers = [
        [r["accuracy"], r["validation_accuracy"], r["steps"], r["hypergradients"], r["plain_steps"]]
        for r in records
    ]
    return [
        np.array(numbers),
        *(np.array(values, float) for curve in curves for values in curve.values()),
    ]


def suite():
    from distillnb.lab.experiments import run_suite

    methods = [
        "labels",
        "half-4",
        "teacher-4",
        "standardised",
        "mostly-labels-normalized",
        "random-search",
        "gradient",
        "lines",
    ]
    records = run_suite(
        "digits",
        2,
        names=["clean", "labels 80 %", "out-of-domain teacher"],
        methods=methods,
        steps=60,
        progress=False,
    )
    return [
        np.array([r["accuracy"], r["validation_accuracy"], r["hypergradients"]]) for r in records
    ]


TRAININGS = {
    "lines, stacked": lambda: stacked(lines),
    "lines, by calls": lambda: stacked(lines, jit_compile=False, steps_per_call=1, max_stacked=1),
    "gradient, nested tape": lambda: stacked(gradient, hypergradient.nested_tape),
    "gradient, forward product": lambda: stacked(gradient, hypergradient.forward_product(0.5)),
    "gradient, authors' order": lambda: stacked(gradient, order="authors"),
    "gradient, K steps": lambda: stacked(gradient, horizons.unrolled(5)),
    "gradient, forward mode": lambda: stacked(gradient, horizons.forward_mode, tangents=True),
    "fixed": lambda: stacked(lambda coordinates: meta_updates.fixed()),
    "convolutions": conv,
    "fit": distiller,
    "fit, stopped and resumed": resumed,
    "fit, hidden layers": hidden,
    "fit, a loss with names": lambda: distiller(
        2, {"lines": None, "optimizer": "sgd"}, loss=learnable_losses.decoupled
    ),
    "fit, XLA": lambda: distiller(
        2, {"jit_compile": True, "meta_optimizer": sgd(0.1), "steps_per_execution": 2}
    ),
    "workers": together,
    "experiment, digits": lambda: experiment(
        name="digits", methods=["fixed", "lines", "tpe", "standardised", "gradient"]
    ),
    "experiment, synthetic": lambda: experiment(
        name="synthetic", methods=["none", "lines-5", "matched", "gradient"]
    ),
    "experiment, authors": lambda: experiment(
        name="synthetic", protocol="authors", methods=["random", "lines"]
    ),
    "suite": suite,
}


def digest(arrays):
    arrays = [np.asarray(a) for a in arrays]
    return hashlib.sha256(
        b"".join(f"{a.dtype} {a.shape}".encode() + a.tobytes() for a in arrays)
    ).hexdigest()[:16]


def bits(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return digest(TRAININGS[name]())


if __name__ == "__main__":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "versions"} | ENVIRONMENT[
        "versions"
    ]
    chosen = [name for name in TRAININGS if not sys.argv[2:] or name in sys.argv[2:]]
    found = {name: bits(name) for name in chosen}
    print(json.dumps(found, indent=1))
    if sys.argv[1:2] == ["record"]:
        RECORD.write_text(
            json.dumps({"environment": environment, "bits": found}, indent=1) + "\n",
            encoding="utf-8",
        )
    elif sys.argv[1:2] == ["compare"]:
        kept = json.loads(RECORD.read_text(encoding="utf-8"))["bits"]
        differ = [name for name in found if found[name] != kept[name]]
        print("the same bits" if not differ else f"other bits: {differ}")
        sys.exit(bool(differ))
