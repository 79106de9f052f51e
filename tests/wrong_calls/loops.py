"""`train`, losses with learned numbers, features, many workers, sources: what people hand them."""

import tempfile

import keras
import numpy as np
import tensorflow as tf
from registry import case

from distillnb import (
    distributed as WK,
)
from distillnb import (
    learnable_losses as N,
)
from distillnb import (
    meta_updates as U,
)
from distillnb import (
    optimizers as O,
)
from distillnb import (
    parametrization as P,
)
from distillnb import (
    problem as PR,
)
from distillnb import (
    training as TR,
)
from distillnb.bilevel_step import init_train_state
from distillnb.distiller import data as BA
from distillnb.losses import Metaparameters as MP

nan, inf = float("nan"), float("inf")
rng = np.random.default_rng(0)
X = rng.normal(size=(120, 6)).astype("float32")
W = rng.normal(size=(6, 3))
Y = (X @ W).argmax(1).astype("int32")
T = (3 * X @ W).astype("float32")
tr = {"x": X[:80], "y": Y[:80], "teacher_logits": T[:80]}
va = {"x": X[80:], "y": Y[80:]}
keras.utils.set_random_seed(0)
net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
P0 = P.unconstrained()
prob = PR.distillation(net, P0)


def go(train=tr, val=va, lam=MP(0.5, 0.5, 4.0), steps=30, opt=None, move=None, weights=None, **o):
    opt = opt or O.sgd(0.1)
    move = move or U.gradient(O.sgd(0.05), P0.project)
    w = weights or [v.numpy() for v in net.trainable_variables]
    st = init_train_state(w, P0.unconstrain(lam), opt, move)
    r = TR.train(prob, opt, move, st, train, val, steps, **o)
    return (
        [round(float(v), 4) for v in (r.inner_loss[-1, 0], r.outer_loss[-1, 0])],
        [round(float(v), 4) for v in r.lam[-1, 0]],
        r.plan.jit_compile,
        list(r.diverged.values()),
    )


g = "train"


def C(name, call):
    return case(g, name, call, 60)


C("(right)", lambda: go())
C("(right, batches)", lambda: go(batch_sizes=(16, 16)))
C("x shorter than y, batches", lambda: go(tr | {"x": X[:60]}, batch_sizes=(16, 16)))
C("x shorter than y, whole set", lambda: go(tr | {"x": X[:60]}))
C(
    "x shorter than y, batches, no XLA",
    lambda: go(tr | {"x": X[:60]}, batch_sizes=(16, 16), jit_compile=False),
)
C(
    "teacher logits shorter, batches",
    lambda: go(tr | {"teacher_logits": T[:60]}, batch_sizes=(16, 16)),
)
C(
    "teacher logits longer, batches",
    lambda: go(tr | {"teacher_logits": T[:100]}, batch_sizes=(16, 16)),
)
C("x longer than y, batches", lambda: go(tr | {"x": X[:100]}, batch_sizes=(16, 16)))
C(
    "validation x shorter, batches",
    lambda: go(val={"x": X[80:100], "y": Y[80:]}, batch_sizes=(16, 16)),
)
C("labels 1..3", lambda: go(tr | {"y": Y[:80] + 1}))
C("labels -1", lambda: go(tr | {"y": Y[:80] - 1}))
C("labels -1, no XLA", lambda: go(tr | {"y": Y[:80] - 1}, jit_compile=False))
C("validation labels out of range", lambda: go(val=va | {"y": Y[80:] + 1}))
C("labels [80,1]", lambda: go(tr | {"y": Y[:80, None]}))
C("labels float", lambda: go(tr | {"y": Y[:80].astype("float32")}))
C("labels one-hot", lambda: go(tr | {"y": np.eye(3, dtype="float32")[Y[:80]]}))
C("labels strings", lambda: go(tr | {"y": np.array(["a"] * 80)}))
C("no teacher_logits", lambda: go({"x": X[:80], "y": Y[:80]}))
C("no y", lambda: go({"x": X[:80], "teacher_logits": T[:80]}))
C("train data a tuple", lambda: go((X[:80], Y[:80])))
C("train data None", lambda: go(None))
C("empty set", lambda: go({k: v[:0] for k, v in tr.items()}))
C("x nan", lambda: go(tr | {"x": np.full((80, 6), nan, "float32")}))
C("x float64 (weights float32)", lambda: go(tr | {"x": X[:80].astype("float64")}))
C("x int", lambda: go(tr | {"x": X[:80].astype("int32")}))
C(
    "teacher nan in one row",
    lambda: go(
        tr
        | {"teacher_logits": np.where(np.arange(80)[:, None] == 3, nan, T[:80]).astype("float32")}
    ),
)
C("teacher other classes", lambda: go(tr | {"teacher_logits": T[:80, :2]}))
C("sample_weight zero", lambda: go(tr | {"sample_weight": np.zeros(80, "float32")}))
C(
    "sample_weight [80,1]",
    lambda: go(tr | {"sample_weight": rng.uniform(size=(80, 1)).astype("float32")}),
)
C("steps 0", lambda: go(steps=0))
C("steps -3", lambda: go(steps=-3))
C("steps 2.5", lambda: go(steps=2.5))
C("steps '3'", lambda: go(steps="3"))
C("batch 0", lambda: go(batch_sizes=(0, 0)))
C("batch -1", lambda: go(batch_sizes=(-1, 4)))
C("batch 2.5", lambda: go(batch_sizes=(2.5, 4)))
C("batch 500", lambda: go(batch_sizes=(500, 4)))
C("batch_sizes 16", lambda: go(batch_sizes=16))
C("batch_sizes three", lambda: go(batch_sizes=(1, 2, 3)))
C("seeds -1", lambda: go(seeds=-1, batch_sizes=(4, 4)))
C("seeds two for one replica", lambda: go(seeds=[1, 2], batch_sizes=(4, 4)))
C("seeds 'a'", lambda: go(seeds="a", batch_sizes=(4, 4)))
C("seeds nan", lambda: go(seeds=nan, batch_sizes=(4, 4)))
C("order unknown", lambda: go(order="theirs"))
C("estimator a string", lambda: go(estimator="one_step"))
C("steps_per_call 0", lambda: go(steps_per_call=0))
C("steps_per_call -1", lambda: go(steps_per_call=-1))
C("max_stacked 0", lambda: go(max_stacked=0))
C("every 0", lambda: len(TR.train and [1]))
C("every -1", lambda: go(evaluate=lambda s: 0, every=-1))
C("evaluate a string", lambda: go(evaluate="acc"))
C("outer a string", lambda: go(move=U.gradient("adam")))
C("move a string", lambda: go(move="gradient"))
C("lines e1 2", lambda: U.lines(O.sgd(0.1), 2, 5))
C("lines e1 3.7", lambda: go(move=U.lines(O.sgd(0.05), 3.7, 5, inf, P0.project)))
C("lines tolerance nan", lambda: U.lines(O.sgd(0.1), 5, 5, nan))
C("project goes nowhere (nan)", lambda: go(move=U.gradient(O.sgd(0.05), lambda l: l * nan)))
C(
    "weights of other shape",
    lambda: go(weights=[np.zeros((5, 3), "float32"), np.zeros(3, "float32")]),
)
C("weights missing", lambda: go(weights=[np.zeros((6, 3), "float32")]))
C("weights nan", lambda: go(weights=[np.full((6, 3), nan, "float32"), np.zeros(3, "float32")]))
C("weights float64", lambda: go(weights=[np.zeros((6, 3)), np.zeros(3)]))
C(
    "another optimizer than at start",
    lambda: (lambda st: TR.train(prob, O.adam(0.1), U.gradient(O.sgd(0.05)), st, tr, va, 3))(
        init_train_state(
            [v.numpy() for v in net.trainable_variables],
            P0.unconstrain(MP(0.5, 0.5, 4.0)),
            O.sgd(0.1),
            U.gradient(O.sgd(0.05)),
        )
    ),
)
C(
    "another rate than at start (slots keep the old one)",
    lambda: (
        lambda st: [
            round(float(v), 4)
            for v in TR.train(
                prob, O.sgd(100.0), U.gradient(O.sgd(0.05)), st, tr, va, 3
            ).inner_loss[:, 0]
        ]
    )(
        init_train_state(
            [v.numpy() for v in net.trainable_variables],
            P0.unconstrain(MP(0.5, 0.5, 4.0)),
            O.sgd(0.001),
            U.gradient(O.sgd(0.05)),
        )
    ),
)
C("diverging: rate 1e6", lambda: go(opt=O.sgd(1e6), steps=100))
C("diverging: outer rate 1e30 without project", lambda: go(move=U.gradient(O.sgd(1e30)), steps=100))
C("batch_order batch 0", lambda: TR.batch_order(0, "train", 10, 0, 0, 1))
C("batch_order first -5", lambda: TR.batch_order(0, "train", 10, 2, -5, 1).tolist())
C("batch_order count 0", lambda: TR.batch_order(0, "train", 10, 2, 0, 0).tolist())
C("batch_order size 0", lambda: TR.batch_order(0, "train", 0, 1, 0, 1))
g = "named"
z = X[:2, :3]
t = T[:2]
y = Y[:2]
for name, call in {
    "named no keywords": lambda: N.learnable(lambda y, z, t: z),
    "named without a start": lambda: N.learnable(eval("lambda y, z, t, *, a: z")),
    "start out of bounds": lambda: (lambda l, c, s: c.unconstrain(s))(
        *N.learnable(eval("lambda y, z, t, *, a=50.0: z"))
    ),
    "start nan": lambda: (lambda l, c, s: c.unconstrain(s))(
        *N.learnable(eval("lambda y, z, t, *, a=float('nan'): z"))
    ),
    "start string": lambda: N.learnable(eval("lambda y, z, t, *, a='x': z")),
    "start None": lambda: (lambda l, c, s: c.unconstrain(s))(
        *N.learnable(eval("lambda y, z, t, *, a=None: z"))
    ),
    "start empty": lambda: (lambda l, c, s: c.unconstrain(s).shape)(
        *N.learnable(eval("lambda y, z, t, *, a=(): z"))
    ),
    "encode missing": lambda: N.learnable(N.label_smoothing)[1].unconstrain({}),
    "encode Metaparameters": lambda: N.learnable(N.label_smoothing)[1].unconstrain(
        MP(0.5, 0.5, 4.0)
    ),
    "smoothing 2.0": lambda: np.asarray(N.label_smoothing(y, z, t, smoothing=2.0)).tolist(),
    "smoothing one class": lambda: np.asarray(
        N.label_smoothing([0, 0], z[:, :1], t, smoothing=0.1)
    ).tolist(),
    "decoupled T 0": lambda: np.asarray(N.decoupled(y, z, t, temperature=0.0)).tolist(),
    "decoupled T -1": lambda: np.asarray(N.decoupled(y, z, t, temperature=-1.0)).tolist(),
    "decoupled logits 1e5": lambda: np.asarray(N.decoupled(y, z * 1e5, t * 1e5)).tolist(),
    "decoupled two classes": lambda: np.asarray(N.decoupled(y % 2, z[:, :2], t[:, :2])).tolist(),
    "decoupled one class": lambda: np.asarray(N.decoupled([0, 0], z[:, :1], t[:, :1])).tolist(),
    "standardised constant logits": lambda: np.asarray(N.standardised(y, 0 * z, 0 * t)).tolist(),
    "standardised one class": lambda: np.asarray(
        N.standardised([0, 0], z[:, :1], t[:, :1])
    ).tolist(),
    "soft_standardised T -1": lambda: np.asarray(N.soft_standardised(t, z, -1.0)).tolist(),
    "decoupled two-hot": lambda: np.asarray(
        N.decoupled(np.float32([[1, 1, 0], [0, 1, 1]]), z, t)
    ).tolist(),
    "decoupled smoothed labels": lambda: np.asarray(
        N.decoupled(np.float32([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]), z, t)
    ).tolist(),
    "decoupled label = classes": lambda: np.asarray(N.decoupled([3, 0], z, t)).tolist(),
}.items():
    case(g, name, call)
g = "features"
for name, call in {
    "hint shapes": lambda: N.hint([z], [t[:, :2]]),
    "hint counts": lambda: N.hint([z], [t, t]),
    "hint empty": lambda: N.hint([], []),
    "hint nan": lambda: np.asarray(N.hint([z * nan], [t])).tolist(),
    "hint a tensor not a list": lambda: np.asarray(N.hint(z, t)).tolist(),
    "hint other batch [2] and [1] (broadcast)": lambda: np.asarray(N.hint([z], [t[:1]])).tolist(),
    "attention 2-D": lambda: N.attention([z], [t]),
    "attention zero maps": lambda: np.asarray(
        N.attention([np.zeros((2, 3, 3, 1), "float32")], [np.zeros((2, 3, 3, 1), "float32")])
    ).tolist(),
    "with_features unknown": lambda: PR.with_features(net, ["x"]),
    "with_features string": lambda: PR.with_features(net, "dense"),
    "with_features subclassed": lambda: PR.with_features(keras.Model(), ["x"]),
    "per_sample 0": lambda: N.per_sample(0),
    "per_sample -3": lambda: N.per_sample(-3),
    "per_sample '5'": lambda: N.per_sample("5"),
    "of_rows -1": lambda: np.asarray(N.of_rows(tf.constant([1.0, 2.0, 3.0]), [-1])).tolist(),
    "of_rows 3 of 3": lambda: np.asarray(N.of_rows(tf.constant([1.0, 2.0, 3.0]), [3])).tolist(),
    "of_rows 3 of 3 under XLA": lambda: np.asarray(
        tf.function(N.of_rows, jit_compile=True)(tf.constant([1.0, 2.0, 3.0]), tf.constant([3]))
    ).tolist(),
    "of_rows -1 under XLA": lambda: np.asarray(
        tf.function(N.of_rows, jit_compile=True)(tf.constant([1.0, 2.0, 3.0]), tf.constant([-1]))
    ).tolist(),
}.items():
    case(g, name, call)
g = "workers"
one = tf.distribute.OneDeviceStrategy("CPU:0")


def together(strategy=one, train=tr, val=va, steps=3, **o):
    st = init_train_state(
        [v.numpy() for v in net.trainable_variables],
        P0.unconstrain(MP(0.5, 0.5, 4.0)),
        O.sgd(0.1),
        U.gradient(O.sgd(0.05)),
    )
    return float(
        WK.train_distributed(
            strategy, prob, O.sgd(0.1), U.gradient(O.sgd(0.05)), st, train, val, steps, **o
        ).inner_loss[-1, 0]
    )


for name, call in {
    "(right)": lambda: together(),
    "strategy None": lambda: together(None),
    "strategy string": lambda: together("mirrored"),
    "steps 0": lambda: together(steps=0),
    "steps -1": lambda: together(steps=-1),
    "batch 0": lambda: together(batch_sizes=(0, 0)),
    "x shorter": lambda: together(train=tr | {"x": X[:60]}, batch_sizes=(16, 16)),
    "seed -1": lambda: together(batch_sizes=(4, 4), seed=-1),
    "mean outside": lambda: WK.all_reduce_mean([tf.ones(2)]),
    "folder, then another teacher": lambda: (
        lambda d: (
            together(folder=d),
            together(folder=d, train=tr | {"teacher_logits": -T[:80]}, steps=3),
        )
    )(tempfile.mkdtemp() + "/r"),
    "folder, other x": lambda: (
        lambda d: (together(folder=d), together(folder=d, train=tr | {"x": -X[:80]}, steps=3))
    )(tempfile.mkdtemp() + "/r"),
}.items():
    case(g, name, call, 60)
g = "batches"
for name, call in {
    "as_split 3-tuple with None": lambda: list(BA.as_split((X, Y, None))),
    "as_split 4-tuple": lambda: BA.as_split((X, Y, Y, Y)),
    "whole scalars": lambda: BA.to_tensors({"x": 1.0, "y": 2}),
    "whole ragged": lambda: BA.to_tensors({"x": [[1], [1, 2]], "y": [0, 1]}),
    "split_off 3 examples": lambda: BA.as_source(
        np.zeros([2, 1]), np.zeros([2], int)
    ).holdout_split(0),
    "split_off share 2": lambda: BA.as_source(np.zeros([9, 1]), np.zeros([9], int)).holdout_split(
        0, 2.0
    ),
    "drawn batch 0": lambda: next(iter(BA.as_source(dict(va)).batches("train", 0, 0, 0, 1))),
    "read of a stream without labels": lambda: BA.as_source(
        tf.data.Dataset.from_tensor_slices(X).batch(4)
    ).first_batch(),
    "stream of nothing": lambda: BA.as_source(
        tf.data.Dataset.from_tensor_slices((X[:0], Y[:0])).batch(4)
    ).first_batch(),
}.items():
    case(g, name, call, 15)
