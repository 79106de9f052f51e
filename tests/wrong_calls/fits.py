"""`MetaDistiller`, its callbacks and schedules: what people hand them."""

import json
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from registry import case

from distillnb import (
    horizons as H,
)
from distillnb import (
    losses as L,
)
from distillnb import (
    optimizers as O,
)
from distillnb import (
    parametrization as P,
)
from distillnb import (
    store,
)
from distillnb.distiller.callbacks import LearnedSchedule, Resume, Schedule
from distillnb.distiller.model import MetaDistiller as _MD
from distillnb.distiller.model import from_keras_distiller
from distillnb.distiller.teachers import TeacherLogits
from distillnb.losses import Metaparameters as MP


def MetaDistiller(student, teacher=None, **o):
    return _MD(teacher, student, **o)


nan, inf = float("nan"), float("inf")
K = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(size=(120, 6)).astype("float32")
W = rng.normal(size=(6, 3))
Y = (X @ W).argmax(1).astype("int32")
T = (3 * X @ W).astype("float32")
tr = {"x": X[:80], "y": Y[:80], "teacher_logits": T[:80]}
va = (X[80:], Y[80:])


def net(*extra, out=3, act=None, dtype=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), K.Dense(8, "relu", dtype=dtype), *extra, K.Dense(out, act, dtype=dtype)]
    )


def last_logs(d, h):
    logs = {k: (round(float(x[-1]), 4)) for k, x in h.history.items()}
    return {
        k: logs[k]
        for k in ("loss", "meta_loss", "accuracy", "temperature", "beta1", "hypergradient_norm")
        if k in logs
    }


def go(train=tr, held_out=va, student=None, teacher=None, made=None, comp=None, **fit):
    if comp is None:
        comp = {}
    if made is None:
        made = {}
    d = MetaDistiller(student or net(), teacher, **made)
    d.compile(**({"optimizer": "sgd", "metrics": ["accuracy"]} | comp))
    h = d.fit(train, meta_validation=held_out, **({"epochs": 2, "verbose": 0} | fit))
    return last_logs(d, h)


g = "fit data"


def C(name, call):
    return case(g, name, call)


C("(right call, for comparison)", lambda: go())
C("labels = classes (one too many)", lambda: go(tr | {"y": Y[:80] + 1}))
C("labels -1", lambda: go(tr | {"y": Y[:80] - 1}))
C("labels -1, jit_compile", lambda: go(tr | {"y": Y[:80] - 1}, comp={"jit_compile": True}))
C("labels 1..3 jit_compile", lambda: go(tr | {"y": Y[:80] + 1}, comp={"jit_compile": True}))
C("meta-validation labels out of range", lambda: go(held_out=(X[80:], Y[80:] + 1)))
C("labels float 0.9 (cut to integers)", lambda: go(tr | {"y": Y[:80] + 0.9}))
C("labels float nan", lambda: go(tr | {"y": np.full(80, nan)}))
C("labels strings", lambda: go(tr | {"y": np.array(["a"] * 80)}))
C("labels uint8 256 wrap int64 2**32", lambda: go(tr | {"y": Y[:80].astype("int64") + 2**32}))
C("labels two-hot", lambda: go(tr | {"y": np.ones((80, 3), "float32")}))
C("labels one-hot of 4 classes", lambda: go(tr | {"y": np.eye(4, dtype="float32")[Y[:80]]}))
C("labels regression targets [80,3] in the hundreds", lambda: go(tr | {"y": 100 * X[:80, :3]}))
C("one class only in train labels", lambda: go(tr | {"y": np.zeros(80, "int32")}))
C("x with nan", lambda: go(tr | {"x": np.where(X[:80] > 2, nan, X[:80]).astype("float32")}))
C("x with inf", lambda: go(tr | {"x": np.where(X[:80] > 2, inf, X[:80]).astype("float32")}))
C("x strings", lambda: go(tr | {"x": np.array([["a"] * 6] * 80)}))
C("x of other width", lambda: go(tr | {"x": X[:80, :5]}))
C("x integer", lambda: go(tr | {"x": (X[:80] * 10).astype("int64")}))
C("x float64", lambda: go(tr | {"x": X[:80].astype("float64")}))
C("x shorter than y", lambda: go(tr | {"x": X[:70]}))
C("teacher logits shorter", lambda: go(tr | {"teacher_logits": T[:70]}))
C("teacher logits other classes", lambda: go(tr | {"teacher_logits": T[:80, :2]}))
C("teacher logits nan", lambda: go(tr | {"teacher_logits": np.full((80, 3), nan, "float32")}))
C(
    "teacher logits one nan row",
    lambda: go(
        tr
        | {"teacher_logits": np.where(np.arange(80)[:, None] == 7, nan, T[:80]).astype("float32")}
    ),
)
C("teacher logits integers", lambda: go(tr | {"teacher_logits": T[:80].astype("int64")}))
C("teacher logits float64", lambda: go(tr | {"teacher_logits": T[:80].astype("float64")}))
C(
    "teacher gives probabilities (array)",
    lambda: go(tr | {"teacher_logits": tf.nn.softmax(T[:80]).numpy()}),
)
C(
    "teacher model ends in softmax",
    lambda: go({"x": X[:80], "y": Y[:80]}, teacher=net(act="softmax")),
)
C("student ends in softmax", lambda: go(student=net(act="softmax")))
C(
    "student with one output (sigmoid)",
    lambda: go(
        tr | {"y": Y[:80] % 2, "teacher_logits": T[:80, :1]},
        held_out=(X[80:], Y[80:] % 2),
        student=net(out=1, act="sigmoid"),
    ),
)
C(
    "student with one output, labels 0",
    lambda: go(
        tr | {"y": 0 * Y[:80], "teacher_logits": T[:80, :1]},
        held_out=(X[80:], 0 * Y[80:]),
        student=net(out=1),
    ),
)
C("teacher has other classes", lambda: go({"x": X[:80], "y": Y[:80]}, teacher=net(out=4)))
C(
    "teacher takes other inputs",
    lambda: go(
        {"x": X[:80], "y": Y[:80]}, teacher=keras.Sequential([keras.Input((4,)), K.Dense(3)])
    ),
)
C(
    "teacher is the student",
    lambda: (lambda s: go({"x": X[:80], "y": Y[:80]}, student=s, teacher=s))(net()),
)
C("no teacher", lambda: go({"x": X[:80], "y": Y[:80]}))
C("teacher is a string", lambda: go({"x": X[:80], "y": Y[:80]}, teacher="resnet"))
C("teacher is an array", lambda: go({"x": X[:80], "y": Y[:80]}, teacher=T[:80]))
ids = np.arange(120)
C(
    "table of another data set with the same ids",
    lambda: go(
        {"x": X[:80], "y": Y[:80], "ids": ids[:80]},
        teacher=TeacherLogits(np.arange(500), rng.normal(size=(500, 3)).astype("float32")),
    ),
)
C(
    "table lacks ids",
    lambda: go(
        {"x": X[:80], "y": Y[:80], "ids": ids[:80]}, teacher=TeacherLogits(np.arange(40), T[:40])
    ),
)
C(
    "table with ids twice",
    lambda: go(
        {"x": X[:80], "y": Y[:80], "ids": ids[:80]},
        teacher=TeacherLogits(np.r_[np.arange(80), np.arange(80)], np.r_[T[:80], -T[:80]]),
    ),
)
C(
    "table ids longer than logits",
    lambda: go(
        {"x": X[:80], "y": Y[:80], "ids": ids[:80]}, teacher=TeacherLogits(np.arange(80), T[:40])
    ),
)
C(
    "table without ids in the set",
    lambda: go({"x": X[:80], "y": Y[:80]}, teacher=TeacherLogits(np.arange(80), T[:80])),
)
C(
    "table empty",
    lambda: go(
        {"x": X[:80], "y": Y[:80], "ids": ids[:80]},
        teacher=TeacherLogits(np.zeros(0, int), np.zeros((0, 3), "float32")),
    ),
)
C("meta-validation is the train set", lambda: go(held_out=(X[:80], Y[:80])))
C(
    "meta-validation is the train set in float64",
    lambda: go(held_out=(X[:80].astype("float64"), Y[:80])),
)
C(
    "meta-validation is the train set scaled by 255",
    lambda: go(held_out=(X[:80] * 1.0000001 + 1e-6, Y[:80])),
)
C(
    "meta-validation shares one example of 80 (1 %)",
    lambda: go(
        held_out=(
            np.r_[X[80:], np.repeat(X[80:], 3, 0)[:59], X[:1]],
            np.r_[Y[80:], np.repeat(Y[80:], 3, 0)[:59], Y[:1]],
        )
    ),
)
C(
    "meta-validation is a stream of the train set",
    lambda: go(held_out=tf.data.Dataset.from_tensor_slices((X[:80], Y[:80])).batch(16)),
)
C("meta-validation is the validation_data", lambda: go(validation_data=va))
C("validation_data is the train set", lambda: go(validation_data=(X[:80], Y[:80])))
C("meta-validation empty", lambda: go(held_out=(X[:0], Y[:0])))
C("train empty", lambda: go({k: v[:0] for k, v in tr.items()}))
C("train one example", lambda: go({k: v[:1] for k, v in tr.items()}))
C("train is a list", lambda: go([X[:80], Y[:80]]))
C("train is None", lambda: go(None))
C("train is x alone", lambda: go(X[:80]))
C("train is a generator", lambda: go(b for b in [(X, Y)]))
C("y where x is already a dict", lambda: go(tr, y=Y[:80]))
C("sample_weight negative", lambda: go(sample_weight=-np.ones(80, "float32")))
C("sample_weight nan", lambda: go(sample_weight=np.full(80, nan, "float32")))
C("sample_weight all zero", lambda: go(sample_weight=np.zeros(80, "float32")))
C("sample_weight shorter", lambda: go(sample_weight=np.ones(8, "float32")))
C("sample_weight [80,3]", lambda: go(sample_weight=np.ones((80, 3), "float32")))
C("sample_weight [80,1]", lambda: go(sample_weight=rng.uniform(size=(80, 1)).astype("float32")))
C("sample_weight strings", lambda: go(sample_weight=np.array(["a"] * 80)))
C("class_weight of strings", lambda: go(class_weight={"0": 2.0}))
C("class_weight of a label that is not there", lambda: go(class_weight={7: 2.0}))
C("class_weight negative", lambda: go(class_weight={0: -2.0}))
C("class_weight nan", lambda: go(class_weight={0: nan}))
C("class_weight list", lambda: go(class_weight=[1.0, 2.0, 3.0]))
C("class_weight 'balanced'", lambda: go(class_weight="balanced"))
g = "fit options"
for name, o in {
    "batch_size 0": {"batch_size": 0},
    "batch_size -1": {"batch_size": -1},
    "batch_size 2.5": {"batch_size": 2.5},
    "batch_size '8'": {"batch_size": "8"},
    "batch_size None": {"batch_size": None},
    "epochs 0": {"epochs": 0},
    "epochs -1": {"epochs": -1},
    "epochs 1.5": {"epochs": 1.5},
    "epochs '2'": {"epochs": "2"},
    "steps_per_epoch 0": {"steps_per_epoch": 0},
    "steps_per_epoch -1": {"steps_per_epoch": -1},
    "seed -1": {"seed": -1},
    "seed 'a'": {"seed": "a"},
    "seed None": {"seed": None},
    "seed 1.5": {"seed": 1.5},
    "initial_epoch 5 of 2": {"initial_epoch": 5},
    "initial_epoch -1": {"initial_epoch": -1},
    "validation_split": {"validation_split": 0.2},
    "shuffle=True": {"shuffle": True},
    "callbacks a string": {"callbacks": "resume"},
    "unknown option": {"epoch": 3},
    "validation_data a number": {"validation_data": 3},
    "two Resumes": {"callbacks": [Resume(tempfile.mkdtemp()), Resume(tempfile.mkdtemp())]},
}.items():
    C2 = case("fit options", name, lambda o=o: go(**o))
for name, comp in {
    "optimizer adagrad": {"optimizer": "adagrad"},
    "optimizer unknown": {"optimizer": "foo"},
    "optimizer of chapter 21": {"optimizer": O.sgd(0.1)},
    "meta_optimizer nadam": {"meta_optimizer": "nadam"},
    "meta_optimizer number": {"meta_optimizer": 0.1},
    "hypergradient unknown": {"hypergradient": "two_step"},
    "hypergradient unrolled": {"hypergradient": H.unrolled(3)},
    "hypergradient implicit in compile": {"hypergradient": H.implicit()},
    "hypergradient forward_mode": {"hypergradient": H.forward_mode},
    "lines (2, 5)": {"lines": (2, 5)},
    "lines 10": {"lines": 10},
    "lines (10,)": {"lines": (10,)},
    "lines strings": {"lines": ("a", "b")},
    "lines (3.5, 2)": {"lines": (3.5, 2)},
    "lines (5, -1)": {"lines": (5, -1)},
    "lines nan": {"lines": (nan, 5)},
    "loss given": {"loss": "mse"},
    "steps_per_execution 0": {"steps_per_execution": 0},
    "run_eagerly and jit": {"run_eagerly": True, "jit_compile": True},
    "metrics BinaryAccuracy": {"metrics": ["binary_accuracy"]},
    "metrics mse": {"metrics": ["mse"]},
    "loss_weights": {"loss_weights": [0.5]},
    "jit_compile 'auto'": {"jit_compile": "auto"},
}.items():
    case("compile", name, lambda comp=comp: go(comp=comp))
g = "init"
for name, made in {
    "start T 1e6": {"start": MP(0.5, 0.5, 1e6)},
    "start nan": {"start": MP(nan, 0.5, 4.0)},
    "start tuple": {"start": (0.5, 0.5, 4.0)},
    "start betas 0.9 0.9": {"start": MP(0.9, 0.9, 4.0)},
    "start betas 1 and 0": {"start": MP(1.0, 0.0, 4.0)},
    "start strings": {"start": MP("a", "b", "c")},
    "start vector T": {
        "start": MP(0.5, 0.5, [1.0, 2.0, 3.0]),
        "parametrization": P.unconstrained(),
    },
    "parametrization a function": {"parametrization": P.unconstrained},
    "parametrization string": {"parametrization": "smooth"},
    "loss string": {"loss": "kl"},
    "loss of two arguments": {"loss": lambda y, z: z},
    "loss gives a scalar": {"loss": lambda y, z, t, lam: tf.reduce_sum(z)},
    "loss gives [batch, classes]": {"loss": lambda y, z, t, lam: z},
    "loss gives None": {"loss": lambda y, z, t, lam: None},
    "loss ignores lam": {"loss": lambda y, z, t, lam: L.cross_entropy(y, z)},
    "layers without a loss": {"layers": [("a", "b")]},
    "layers a string": {"layers": "dense"},
    "unknown option": {"temperature": 4.0},
    "name with newline": {"name": "a\nb"},
}.items():
    case(g, name, lambda made=made: go(made=made))
case(g, "student None", lambda: MetaDistiller(None))
case(g, "student a string", lambda: MetaDistiller("resnet"))
case(g, "student float16", lambda: MetaDistiller(net(dtype="mixed_float16")))
case(
    g,
    "student not trainable",
    lambda: (lambda s: (setattr(s, "trainable", False), go(student=s))[1])(net()),
)
case(g, "student unbuilt", lambda: go(student=keras.Sequential([K.Dense(3)])))
case(
    g,
    "student two outputs",
    lambda: (lambda i: go(student=keras.Model(i, [K.Dense(3)(i), K.Dense(3)(i)])))(
        keras.Input((6,))
    ),
)
case(
    g,
    "student 3-D output",
    lambda: (lambda i: go(student=keras.Model(i, K.Reshape((1, 3))(K.Dense(3)(i)))))(
        keras.Input((6,))
    ),
)
case(g, "fit before compile", lambda: MetaDistiller(net()).fit(tr, meta_validation=va))
case(g, "distiller of a distiller", lambda: go(student=MetaDistiller(net())))
case(g, "from_keras None", lambda: from_keras_distiller(None))
case(
    g,
    "from_keras feature distillation",
    lambda: from_keras_distiller(
        keras.distillation.Distiller(
            net(), net(), keras.distillation.FeatureDistillation("mse") if True else None
        )
    ),
)
case(
    g,
    "from_keras weight 1.0",
    lambda: (
        from_keras_distiller(
            keras.distillation.Distiller(
                net(), net(), keras.distillation.LogitsDistillation(), student_loss_weight=1.0
            )
        ).metaparameters
    ),
)
case(
    g,
    "evaluate without labels",
    lambda: (lambda d: (d.compile(), d.evaluate(X[:5], verbose=0)))(MetaDistiller(net())),
)
case(
    g,
    "predict of other width",
    lambda: (lambda d: (d.compile(), d.predict(X[:5, :3], verbose=0)))(MetaDistiller(net())),
)
g = "Resume"


def f():
    return Path(tempfile.mkdtemp())


def twice(second, first=None, folder=None, reopen=lambda p: None):
    if first is None:
        first = {}
    p = folder or f() / "r"
    one = go(**({"callbacks": [Resume(p)]} | first))
    reopen(p)
    two = go(**({"callbacks": [Resume(p)], "epochs": 4} | second))
    return one, two


case(g, "(the same twice, more epochs)", lambda: twice({}))
case(g, "other x, same labels", lambda: twice({"train": tr | {"x": -X[:80]}}))
case(g, "other teacher logits", lambda: twice({"train": tr | {"teacher_logits": -T[:80]}}))
case(g, "other held_out inputs, same labels", lambda: twice({"held_out": (X[80:] + 1, Y[80:])}))
case(g, "other start", lambda: twice({"made": {"start": MP(0.9, 0.1, 1.0)}}))
case(
    g,
    "other parametrization (bounds)",
    lambda: twice(
        {
            "made": {
                "parametrization": P.unconstrained(
                    (0.3, 0.3, 3.0), (0.7, 0.7, 5.0), tie="sum_to_one"
                )
            }
        }
    ),
)
case(
    g,
    "other loss",
    lambda: twice({"made": {"loss": lambda y, z, t, lam: 100 * L.cross_entropy(y, z)}}),
)
case(g, "other class_weight", lambda: twice({"class_weight": {0: 50.0}}))
case(
    g,
    "other sample_weight",
    lambda: twice({"train": tr | {"sample_weight": np.zeros(80, "float32")}}),
)
case(g, "other batch size (refused?)", lambda: twice({"batch_size": 8}))
case(
    g,
    "other optimizer momentum",
    lambda: twice({"comp": {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9)}}),
)
case(
    g,
    "nesterov on the second time",
    lambda: twice(
        {"comp": {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)}},
        {"comp": {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9)}},
    ),
)
case(
    g,
    "adam -> adamw(0)-like class change",
    lambda: twice(
        {"comp": {"optimizer": keras.optimizers.RMSprop(0.001, momentum=0.9)}},
        {"comp": {"optimizer": keras.optimizers.Adam(0.001)}},
    ),
)
case(
    g,
    "schedule of another length",
    lambda: twice(
        {
            "comp": {
                "optimizer": keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 2))
            }
        },
        {
            "comp": {
                "optimizer": keras.optimizers.SGD(
                    keras.optimizers.schedules.CosineDecay(0.01, 1000)
                )
            }
        },
    ),
)
case(
    g,
    "other activation in the student",
    lambda: twice(
        {
            "student": (lambda i: keras.Model(i, K.Dense(3)(K.Dense(8, "tanh", name="dense")(i))))(
                keras.Input((6,))
            )
        },
        {
            "student": (lambda i: keras.Model(i, K.Dense(3)(K.Dense(8, "relu", name="dense")(i))))(
                keras.Input((6,))
            )
        },
    ),
)
case(
    g,
    "folder is a file",
    lambda: (lambda p: (p.write_text("x"), go(callbacks=[Resume(p)])))(f() / "file"),
)
case(g, "folder with a newline and unicode", lambda: go(callbacks=[Resume(f() / "a\nb ü 数")]))
case(g, "folder empty string", lambda: (os.chdir(f()), go(callbacks=[Resume("")]))[1])
case(g, "folder None", lambda: go(callbacks=[Resume(None)]))
case(g, "interval negative", lambda: go(callbacks=[Resume(f(), interval=-1)]))
case(g, "interval nan", lambda: go(callbacks=[Resume(f(), interval=nan)]))
case(
    g,
    "plain keras model",
    lambda: (lambda m: (m.compile("sgd", "mse"), m.fit(X, T, callbacks=[Resume(f())], verbose=0)))(
        net()
    ),
)
case(
    g,
    "same folder in use twice at once",
    lambda: (lambda p: (store.Store(p, {}), go(callbacks=[Resume(p)]))[1])(f()),
)
case(
    g,
    "folder of an experiment (another Store)",
    lambda: (
        lambda p: (store.Store(p, {"experiment": "digits"}).close(), go(callbacks=[Resume(p)]))[1]
    )(f()),
)
g = "LearnedSchedule"
good = {"beta1": [0.5, 0.6], "beta2": [0.5, 0.4], "temperature": [4.0, 5.0]}


def play(path):
    s = LearnedSchedule(Schedule(path) if isinstance(path, dict) else path)
    m = net()
    m.compile("sgd", loss=s.loss)
    h = m.fit(X[:80], np.c_[Y[:80], T[:80]].astype("float32"), epochs=1, callbacks=[s], verbose=0)
    return h.history


case(g, "(right)", lambda: play(good))
for name, d in {
    "empty lists": {k: [] for k in good},
    "missing temperature": {"beta1": [1.0], "beta2": [1.0]},
    "other lengths": good | {"beta1": [0.5]},
    "nan": good | {"beta1": [nan, nan]},
    "T negative": good | {"temperature": [-4.0, -4.0]},
    "T zero": good | {"temperature": [0.0, 0.0]},
    "betas negative": good | {"beta1": [-5.0, -5.0]},
    "strings": good | {"beta1": ["a", "b"]},
    "numbers not lists": {k: 0.5 for k in good},
    "extra name": good | {"gamma": [1.0, 1.0]},
    "huge": good | {"temperature": [1e300, 1e300]},
    "nested": good | {"beta1": [[0.5, 0.5], [0.5, 0.5]]},
}.items():
    case(g, name, lambda d=d: play(d))


def load(text):
    p = f() / "s.json"
    p.write_bytes(text if isinstance(text, bytes) else text.encode())
    return play(Schedule.load(p))


for name, text in {
    "not JSON": "hello",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "NaN in JSON": json.dumps(good | {"beta1": [nan, nan]}),
    "empty": "",
    "binary": b"\xff\xfe\x00",
    "bomb of brackets": "[" * 200000,
    "huge number": json.dumps(good).replace("4.0", "1e999"),
}.items():
    case(g, f"load: {name}", lambda text=text: load(text))
case(g, "load: no file", lambda: Schedule.load(f() / "nope.json"))
case(
    g,
    "labels one-hot in place of label + logits",
    lambda: (
        lambda s, m: (
            m.compile("sgd", loss=s.loss),
            m.fit(X[:80], np.eye(3, dtype="float32")[Y[:80]], callbacks=[s], verbose=0).history,
        )
    )(LearnedSchedule(Schedule(good)), net()),
)
case(
    g,
    "one-hot + logits",
    lambda: (
        lambda s, m: (
            m.compile("sgd", loss=s.loss),
            m.fit(
                X[:80], np.c_[np.eye(3)[Y[:80]], T[:80]].astype("float32"), callbacks=[s], verbose=0
            ).history,
        )
    )(LearnedSchedule(Schedule(good)), net()),
)
case(
    g,
    "logits first, then label",
    lambda: (
        lambda s, m: (
            m.compile("sgd", loss=s.loss),
            m.fit(
                X[:80], np.c_[T[:80], Y[:80]].astype("float32"), callbacks=[s], verbose=0
            ).history,
        )
    )(LearnedSchedule(Schedule(good)), net()),
)
case(
    g,
    "History of a plain fit",
    lambda: LearnedSchedule(
        (lambda m: (m.compile("sgd", "mse"), m.fit(X, T, verbose=0))[1])(net())
    ),
)
