"""Losses, parametrizations, optimizers, lines, estimators, tables, regimes: what people hand them."""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from registry import case

from distillnb import (
    bilevel as B,
)
from distillnb import (
    distributed as M,
)
from distillnb import (
    extrapolation as X,
)
from distillnb import (
    horizons as H,
)
from distillnb import (
    hypergradient as G,
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
from distillnb.lab import regimes as R
from distillnb.lab import tables as T
from distillnb.losses import Metaparameters as MP

nan, inf = float("nan"), float("inf")
z = np.float32([[1, 2, 3], [3, 2, 1]])
t = z[::-1].copy()
y = np.int32([0, 2])


def v(x):
    return np.asarray(x).tolist()


g = "losses"
case(g, "soften integer logits", lambda: v(L.soften([1, 2, 3], 2.0)))
case(g, "soften int64 array", lambda: v(L.soften(np.array([[1, 2, 3]]), 2.0)))
case(g, "soften T=0", lambda: v(L.soften(z, 0.0)))
case(g, "soften T<0", lambda: v(L.soften(z, -1.0)))
case(g, "soften T=nan", lambda: v(L.soften(z, nan)))
case(g, "soften T=inf", lambda: v(L.soften(z, inf)))
case(g, "soften T string", lambda: v(L.soften(z, "2")))
case(g, "soften T None", lambda: v(L.soften(z, None)))
case(g, "soften T of other length", lambda: v(L.soften(z, np.ones(2))))
case(g, "soften T per example [2,1]", lambda: v(L.soften(z, np.ones((2, 1)))))
case(g, "soften nan logits", lambda: v(L.soften([[nan, 1.0, 2.0]], 1.0)))
case(g, "soften empty", lambda: v(L.soften(np.zeros((0, 3), "float32"), 1.0)))
case(g, "soften 0 classes", lambda: v(L.soften(np.zeros((2, 0), "float32"), 1.0)))
case(g, "soften strings", lambda: v(L.soften(["a", "b"], 1.0)))
case(
    g,
    "soften T variable -1 in tf.function",
    lambda: v(tf.function(lambda T: L.soften(z, T))(tf.constant(-1.0))),
)
case(g, "cross_entropy label -1", lambda: v(L.cross_entropy([0, -1], z)))
case(g, "cross_entropy label = classes", lambda: v(L.cross_entropy([0, 3], z)))
case(
    g,
    "cross_entropy label -1 under XLA",
    lambda: v(tf.function(L.cross_entropy, jit_compile=True)(tf.constant([0, -1]), tf.constant(z))),
)
case(g, "cross_entropy float labels 0.7", lambda: v(L.cross_entropy([0.7, 1.2], z)))
case(g, "cross_entropy string labels", lambda: v(L.cross_entropy(["a", "b"], z)))
case(g, "cross_entropy fewer labels", lambda: v(L.cross_entropy([0], z)))
case(
    g,
    "cross_entropy numpy int logits",
    lambda: v(L.cross_entropy(y, np.int64([[1, 2, 3], [3, 2, 1]]))),
)
case(g, "cross_entropy list logits", lambda: v(L.cross_entropy(y, z.tolist())))
case(
    g,
    "cross_entropy two-hot rows",
    lambda: v(L.cross_entropy(np.float32([[1, 1, 0], [0, 0, 1]]), z)),
)
case(
    g,
    "cross_entropy integer scores as rows [2,3] summing to 6",
    lambda: v(L.cross_entropy(np.int32([[1, 2, 3], [1, 2, 3]]), z)),
)
case(g, "cross_entropy labels [2,1] column", lambda: v(L.cross_entropy(np.int32([[0], [2]]), z)))
case(
    g,
    "cross_entropy negative probabilities",
    lambda: v(L.cross_entropy(np.float32([[-1, 2, 0], [0, 0, 1]]), z)),
)
case(g, "cross_entropy bool labels", lambda: v(L.cross_entropy(np.array([True, False]), z)))
case(g, "soft_ce int logits", lambda: v(L.soft_cross_entropy(np.int64(t), np.int64(z), 2.0)))
case(g, "soft_ce other classes", lambda: v(L.soft_cross_entropy(t[:, :2], z, 2.0)))
case(g, "soft_ce other batch", lambda: v(L.soft_cross_entropy(t[:1], z, 2.0)))
case(g, "soft_ce teacher [3] broadcast", lambda: v(L.soft_cross_entropy(t[0], z, 2.0)))
case(g, "soft_ce nan teacher", lambda: v(L.soft_cross_entropy(np.full_like(t, nan), z, 2.0)))
case(
    g,
    "soft_ce inf teacher",
    lambda: v(L.soft_cross_entropy(np.float32([[inf, 0, 0], [0, 0, 0]]), z, 2.0)),
)
case(
    g,
    "soft_ce -inf teacher (masked class)",
    lambda: v(L.soft_cross_entropy(np.float32([[-inf, 0, 0], [0, 0, 0]]), z, 2.0)),
)
case(g, "soft_ce None teacher", lambda: v(L.soft_cross_entropy(None, z, 2.0)))
case(
    g,
    "soft_div -inf teacher (masked class)",
    lambda: v(L.soft_divergence(np.float32([[-inf, 0, 0], [0, 0, 0]]), z, 2.0)),
)
case(g, "soft_div T string", lambda: v(L.soft_divergence(t, z, "x")))
case(
    g,
    "soft_ce unknown static shapes other classes in graph",
    lambda: v(
        tf.function(
            lambda a, b: L.soft_cross_entropy(a, b, 2.0),
            input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)],
        )(tf.constant(t[:, :1]), tf.constant(z))
    ),
)
case(g, "hinton beta1 negative", lambda: v(L.hinton(y, z, t, MP(-1.0, 1.0, 2.0))))
case(g, "hinton beta2 nan", lambda: v(L.hinton(y, z, t, MP(1.0, nan, 2.0))))
case(g, "hinton lam tuple not Metaparameters", lambda: v(L.hinton(y, z, t, (1.0, 1.0, 2.0))))
case(g, "hinton lam dict", lambda: v(L.hinton(y, z, t, {"beta1": 1})))
case(
    g,
    "hinton T vector with t_squared",
    lambda: v(L.hinton(y, z, t, MP(1.0, 1.0, [1.0, 2.0, 3.0]), t_squared=True)),
)
case(g, "hinton soft not callable", lambda: v(L.hinton(y, z, t, MP(1.0, 1.0, 2.0), soft="kl")))
case(
    g,
    "hinton teacher probabilities in place of logits",
    lambda: v(L.hinton(y, z, tf.nn.softmax(t), MP(1.0, 1.0, 2.0))),
)
case(
    g,
    "hinton beta1 of length 3 (not batch)",
    lambda: v(L.hinton(y, z, t, MP(np.ones(3), 1.0, 2.0))),
)
case(g, "hinton int logits", lambda: v(L.hinton(y, np.int64(z), t, MP(1.0, 1.0, 2.0))))
g = "parametrization"
case(g, "box low T 0", lambda: v(P.box((0, 0, 0), (1, 1, 10)).unconstrain(MP(0.5, 0.5, 0.0))))
case(
    g,
    "box low T negative",
    lambda: v(P.box((0, 0, -5), (1, 1, 10)).unconstrain(MP(0.5, 0.5, -1.0))),
)
case(
    g,
    "box beta negative low",
    lambda: v(P.box((-1, 0, 1), (1, 1, 10)).unconstrain(MP(-0.5, 0.5, 1.0))),
)
case(g, "box high nan", lambda: P.box((0, 0, 0.1), (1, 1, nan)))
case(
    g,
    "box high inf, beta below its low",
    lambda: v(P.box((0, 0, 0.1), (inf, inf, inf)).unconstrain(MP(-100.0, 0.5, -7.0))),
)
case(g, "box swapped bounds", lambda: P.box((1, 1, 10), (0, 0, 0.1)))
case(g, "box two bounds", lambda: P.box((0, 0), (1, 1)))
case(g, "box strings", lambda: P.box(("a", "b", "c"), (1, 1, 10)))
case(g, "box tie unknown", lambda: P.box(tie="sum"))
case(g, "box None", lambda: P.box(None, None))
case(g, "unconstrained low 0", lambda: P.unconstrained((0, 1e-3, 0.05)))
case(
    g,
    "unconstrained high inf",
    lambda: v(P.unconstrained(high=(inf, inf, inf)).project(tf.constant([1e9, 1e9, 1e9]))),
)
case(
    g,
    "unconstrained tied beta high 1.0",
    lambda: P.unconstrained(high=(1.0, 1.0, 100.0), tie="sum_to_one"),
)
case(
    g,
    "unconstrained tied betas 0.9+0.9",
    lambda: P.unconstrained(tie="sum_to_one").unconstrain(MP(0.9, 0.9, 4.0)),
)
case(g, "unconstrain T 1e6", lambda: P.unconstrained().unconstrain(MP(0.5, 0.5, 1e6)))
case(g, "unconstrain nan", lambda: P.unconstrained().unconstrain(MP(nan, 0.5, 4.0)))
case(g, "unconstrain None", lambda: P.unconstrained().unconstrain(MP(None, 0.5, 4.0)))
case(g, "unconstrain tuple", lambda: P.unconstrained().unconstrain((0.5, 0.5, 4.0)))
case(
    g,
    "unconstrain int dtype",
    lambda: v(P.unconstrained().unconstrain(MP(0.5, 0.5, 4.0), "int32")),
)
case(g, "constrain wrong width", lambda: v(P.unconstrained().constrain(tf.constant([1.0, 2.0]))))
case(
    g,
    "constrain nan",
    lambda: [v(a) for a in P.unconstrained().constrain(tf.constant([nan, 0.0, 0.0]))],
)
g = "optimizers"
for name, call in {
    "sgd 0": lambda: O.sgd(0),
    "sgd -1": lambda: O.sgd(-1.0),
    "sgd nan": lambda: O.sgd(nan),
    "sgd inf": lambda: O.sgd(inf),
    "sgd True": lambda: O.sgd(True),
    "sgd '0.1'": lambda: O.sgd("0.1"),
    "sgd None": lambda: O.sgd(None),
    "sgd tensor": lambda: O.sgd(tf.constant(0.1)),
    "sgd array": lambda: O.sgd(np.array([0.1, 0.2])),
    "momentum 1": lambda: O.sgd(0.1, 1.0),
    "momentum -0.1": lambda: O.sgd(0.1, -0.1),
    "nesterov without": lambda: O.sgd(0.1, nesterov=True),
    "clip 0": lambda: O.sgd(0.1, clip=0),
    "clip nan": lambda: O.sgd(0.1, clip=nan),
    "clip -inf": lambda: O.sgd(0.1, clip=-inf),
    "weight_decay -1": lambda: O.sgd(0.1, weight_decay=-1),
    "adam decay 1": lambda: O.adam(0.1, 1.0),
    "adam eps 0": lambda: O.adam(0.1, epsilon=0),
    "adam sq 1": lambda: O.adam(0.1, square_decay=1),
    "rmsprop decay 2": lambda: O.rmsprop(0.1, 2.0),
    "adamw wd nan": lambda: O.adamw(0.1, nan),
    "cosine steps 0": lambda: O.cosine(0.1, 0),
    "cosine rate -1": lambda: O.cosine(-1, 10),
    "cosine floor above rate": lambda: O.cosine(0.1, 10, 5.0),
    "exponential factor 0": lambda: O.exponential(0.1, 0, 5),
    "exponential every nan": lambda: O.exponential(0.1, 0.5, nan),
    "warmup -5": lambda: O.warmup(0.1, -5),
    "warmup 'x'": lambda: O.warmup("x", 5),
    "schedule gives negative rate": lambda: v(
        O.sgd(lambda s: -1.0).update(
            [tf.ones(2)], [tf.ones(2)], O.sgd(lambda s: -1.0).init([tf.ones(2)]), 0
        )[0]
    ),
    "schedule gives nan": lambda: v(
        O.sgd(lambda s: nan).update(
            [tf.ones(2)], [tf.ones(2)], O.sgd(lambda s: nan).init([tf.ones(2)]), 0
        )[0]
    ),
    "schedule gives string": lambda: v(
        O.sgd(lambda s: "a").update(
            [tf.ones(2)], [tf.ones(2)], O.sgd(lambda s: "a").init([tf.ones(2)]), 0
        )[0]
    ),
    "init without weights": lambda: O.sgd(0.1).init([]),
    "init of ints": lambda: O.sgd(0.1).init([tf.constant([1, 2])]),
    "update fewer gradients": lambda: O.sgd(0.1).update(
        [tf.ones(2)], [], O.sgd(0.1).init([tf.ones(2)]), 0
    ),
    "update None gradient": lambda: O.sgd(0.1).update(
        [tf.ones(2)], [None], O.sgd(0.1).init([tf.ones(2)]), 0
    ),
    "update negative step (adam)": lambda: v(
        O.adam(0.1).update([tf.ones(2)], [tf.ones(2)], O.adam(0.1).init([tf.ones(2)]), -1)[0]
    ),
}.items():
    case(g, name, call)
import keras

for name, call in {
    "from_keras Adagrad": lambda: O.from_keras(keras.optimizers.Adagrad()),
    "from_keras string": lambda: O.from_keras("adam"),
    "from_keras None": lambda: O.from_keras(None),
    "from_keras clipnorm": lambda: O.from_keras(keras.optimizers.SGD(clipnorm=1.0)),
    "from_keras ema": lambda: O.from_keras(keras.optimizers.SGD(use_ema=True)),
    "from_keras amsgrad": lambda: O.from_keras(keras.optimizers.Adam(amsgrad=True)),
    "from_keras lr 0": lambda: O.from_keras(keras.optimizers.SGD(0.0)),
    "from_keras lr negative": lambda: O.from_keras(keras.optimizers.SGD(-1.0)),
    "from_keras lr nan": lambda: O.from_keras(keras.optimizers.SGD(nan)),
    "from_keras callable lr": lambda: O.from_keras(keras.optimizers.SGD(lambda: 0.1)),
    "from_keras class not instance": lambda: O.from_keras(keras.optimizers.Adam),
    "from_keras LossScale": lambda: O.from_keras(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    ),
    "from_keras clipvalue -1": lambda: O.from_keras(keras.optimizers.SGD(clipvalue=-1.0)),
}.items():
    case(g, name, call)
g = "extrapolation"


def step(lam):
    return lam * 0.9


for name, call, lim in [
    ("fit_line one point", lambda: X.fit_line([[1.0]]), 5),
    ("fit_line empty", lambda: X.fit_line([]), 5),
    ("fit_line nan", lambda: X.fit_line([[nan], [1.0], [2.0]]), 5),
    ("fit_line strings", lambda: X.fit_line([["a"], ["b"]]), 5),
    ("fit_line scalar", lambda: X.fit_line(3.0), 5),
    ("fit_line 1-D", lambda: X.fit_line([1.0, 2.0, 3.0]), 5),
    ("restart_period e1=0", lambda: X.restart_period(0, 5), 5),
    ("restart_period negative", lambda: X.restart_period(-5, 10), 5),
    (
        "safe_horizon tolerance 0",
        lambda: X.safe_horizon(X.fit_line([[1.0], [2.0], [3.0]]), 5, 0),
        5,
    ),
    (
        "safe_horizon tolerance nan",
        lambda: X.safe_horizon(X.fit_line([[1.0], [2.0], [3.0]]), 5, nan),
        5,
    ),
    (
        "safe_horizon limit -1",
        lambda: X.safe_horizon(X.fit_line([[1.0], [2.0], [3.0]]), -1, 1.0),
        5,
    ),
    ("safe_horizon nan line", lambda: X.safe_horizon(X.fit_line([[nan], [2.0], [3.0]]), 5, 1.0), 5),
    (
        "safe_horizon nan line, tolerance inf",
        lambda: X.safe_horizon(X.fit_line([[nan], [2.0], [3.0]]), 5, inf),
        5,
    ),
    ("follow e1=0 e2=0", lambda: X.follow(step, np.ones(2), 10, 0, 0), 5),
    ("follow e1=-1 e2=0", lambda: X.follow(step, np.ones(2), 10, -1, 0), 5),
    ("follow e1=0 e2=5", lambda: X.follow(step, np.ones(2), 10, 0, 5), 5),
    ("follow e1=1 e2=5", lambda: X.follow(step, np.ones(2), 10, 1, 5), 5),
    ("follow e2=-3", lambda: X.follow(step, np.ones(2), 10, 3, -3)[1], 5),
    ("follow steps -1", lambda: X.follow(step, np.ones(2), -1, 3, 3), 5),
    ("follow tolerance -1", lambda: X.follow(step, np.ones(2), 10, 3, 3, -1), 5),
    ("follow step changes shape", lambda: X.follow(lambda l: np.ones(3), np.ones(2), 10, 3, 3), 5),
    ("follow e1 2.5", lambda: X.follow(step, np.ones(2), 10, 2.5, 3), 5),
    ("predict z string", lambda: X.predict(X.fit_line([[1.0], [2.0], [3.0]]), "5"), 5),
]:
    case(g, name, call, lim)
g = "routes"
for name, call in {
    "unrolled 0": lambda: H.unrolled(0),
    "unrolled -1": lambda: H.unrolled(-1),
    "unrolled 2.5": lambda: H.unrolled(2.5),
    "unrolled '3'": lambda: H.unrolled("3"),
    "unrolled through 5 of 3": lambda: H.unrolled(3, 5),
    "unrolled True": lambda: H.unrolled(True),
    "implicit solver": lambda: H.implicit("gmres"),
    "implicit steps 0": lambda: H.implicit(steps=0),
    "implicit steps 2.5": lambda: H.implicit(steps=2.5),
    "implicit tol nan": lambda: H.implicit(tolerance=nan),
    "implicit damping -1": lambda: H.implicit(damping=-1),
    "implicit rate 'a'": lambda: H.implicit(rate="a"),
    "forward_product 0": lambda: G.forward_product(0),
    "forward_product 2": lambda: G.forward_product(2),
    "forward_product nan": lambda: G.forward_product(nan),
    "forward_product 'half'": lambda: G.forward_product("half"),
    "finite_difference sides 3": lambda: G.finite_difference(3),
}.items():
    case(g, name, call)
A, Bm, c = np.diag([1.0, 2.0]), np.ones((2, 1)), np.zeros(2)
Q = B.quadratic(A, Bm, c)


def hyper(route, w=(1.0, 2.0), lam=(1.0,), train=None, val=None, opt=O.sgd(0.1)):
    if val is None:
        val = {}
    if train is None:
        train = {}
    s = G.init_student([tf.constant(w)], opt)
    return v(route(Q, opt, s, tf.constant(lam), train, val).hypergradient)


case(g, "one_step (right, for comparison)", lambda: hyper(G.one_step))
case(g, "finite_difference epsilon 0", lambda: hyper(G.finite_difference(2, 0.0)))
case(g, "finite_difference epsilon -0.01", lambda: hyper(G.finite_difference(2, -0.01)))
case(g, "finite_difference epsilon 1e-12", lambda: hyper(G.finite_difference(2, 1e-12)))
case(g, "finite_difference epsilon nan", lambda: hyper(G.finite_difference(2, nan)))
case(
    g,
    "lam a numpy array",
    lambda: v(
        G.one_step(
            Q,
            O.sgd(0.1),
            G.init_student([tf.constant([1.0, 2.0])], O.sgd(0.1)),
            np.float32([1.0]),
            {},
            {},
        ).hypergradient
    ),
)
case(
    g,
    "lam an integer tensor",
    lambda: v(
        G.one_step(
            Q,
            O.sgd(0.1),
            G.init_student([tf.constant([1.0, 2.0])], O.sgd(0.1)),
            tf.constant([1]),
            {},
            {},
        ).hypergradient
    ),
)
case(g, "forward mode without tangents", lambda: hyper(H.forward_mode))
case(
    g,
    "unrolled with batches not stacked",
    lambda: hyper(H.unrolled(3), train={"x": tf.zeros([2, 1])}),
)
case(g, "unrolled with no batches", lambda: hyper(H.unrolled(3)))
case(g, "implicit far from minimum, one CG step", lambda: hyper(H.implicit(steps=1)))
case(g, "quadratic not symmetric", lambda: B.quadratic([[1, 2], [0, 1]], Bm, c))
case(
    g,
    "quadratic B of other size",
    lambda: (
        hyper(G.one_step)
        if False
        else v(B.quadratic(A, np.ones((3, 1)), c).inner([tf.ones(2)], tf.ones(1), {})[0])
    ),
)
case(
    g,
    "quadratic_hypergradient steps 0",
    lambda: B.quadratic_hypergradient(A, Bm, c, [1, 1], [1], 0.1, 0),
)
case(
    g,
    "quadratic_hypergradient steps 1.5",
    lambda: B.quadratic_hypergradient(A, Bm, c, [1, 1], [1], 0.1, 1.5),
)
case(
    g,
    "quadratic_hypergradient rate -1",
    lambda: B.quadratic_hypergradient(A, Bm, c, [1, 1], [1], -1.0, 2),
)
case(
    g,
    "central_difference epsilon 0",
    lambda: G.central_difference(lambda x: (x**2).sum(), [1.0, 2.0], 0.0),
)
case(g, "begin with no weights", lambda: G.init_student([], O.sgd(0.1)))
g = "messages"
for name, call in {
    "ring workers 0": lambda: M.ring_seconds(100, 0, M.Link(1e-3, 1e9)),
    "ring workers -2": lambda: M.ring_seconds(100, -2, M.Link(1e-3, 1e9)),
    "ring bandwidth 0": lambda: M.ring_seconds(100, 4, M.Link(1e-3, 0)),
    "ring negative bytes": lambda: M.ring_seconds(-100, 4, M.Link(0, 1e9)),
    "tree workers 0": lambda: M.tree_seconds(100, 0, M.Link(1e-3, 1e9)),
    "message_bytes -5": lambda: M.message_bytes(-5),
}.items():
    case(g, name, call)
g = "tables"


def rec(m, s, a, e="digits"):
    return {
        "experiment": e,
        "method": m,
        "seed": s,
        "accuracy": a,
        "steps": 1,
        "hypergradients": 0,
        "hypergradients_saved": 0,
        "plain_steps": 1,
        "seconds": 1,
        "validation_accuracy": 0.5,
        "stopped": None,
    }


tmp = Path(tempfile.mkdtemp())
case(g, "paired other length", lambda: T.paired([0.5, 0.6], [0.5, 0.6, 0.7]))
case(g, "paired length 1 against 3 (broadcast)", lambda: T.paired([0.5], [0.5, 0.6, 0.7]))
case(g, "paired a number against a list", lambda: T.paired(0.5, [0.5, 0.6, 0.7]))
case(g, "paired nan", lambda: T.paired([0.5, nan, 0.6], [0.5, 0.6, 0.7]))
case(g, "paired empty", lambda: T.paired([], []))
case(g, "paired strings", lambda: T.paired(["a"], ["b"]))
case(
    g,
    "paired constant gains +0.1 up to rounding",
    lambda: T.paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]),
)
case(
    g,
    "summarise two experiments in one list",
    lambda: [
        (r["method"], r["n"], r["accuracy_mean"])
        for r in T.summarise([rec("fixed", 0, 0.9), rec("fixed", 0, 0.1, "synthetic")])
    ],
)
case(
    g,
    "summarise the same seed twice",
    lambda: [
        (r["method"], r["n"], r["accuracy_mean"])
        for r in T.summarise([rec("fixed", 0, 0.9), rec("fixed", 0, 0.1)])
    ],
)
case(g, "summarise unknown method", lambda: T.summarise([rec("mine", 0, 0.9)]))
case(g, "summarise empty", lambda: T.summarise([]))
case(
    g,
    "summarise nan accuracy",
    lambda: [
        (r["method"], r["accuracy_mean"])
        for r in T.summarise([rec("fixed", 0, nan), rec("fixed", 1, 0.5)])
    ],
)
case(
    g,
    "summarise accuracy 90 (percent)",
    lambda: [(r["method"], r["accuracy_mean"]) for r in T.summarise([rec("fixed", 0, 90.0)])],
)
case(g, "summarise missing key", lambda: T.summarise([{"method": "fixed", "seed": 0}]))
case(g, "compare unknown", lambda: T.compare([rec("fixed", 0, 0.9)], "gradient"))
case(g, "write_tables empty", lambda: T.write_tables([], tmp))
case(g, "read_records no folder", lambda: T.read_records(tmp / "nothing"))
(tmp / "records.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe')
case(g, "read_records not utf-8", lambda: T.read_records(tmp))
(tmp / "records.jsonl").write_text("[" * 100000)
case(g, "read_records nested bomb", lambda: T.read_records(tmp))
(tmp / "records.jsonl").write_text("1\n2\n")
case(g, "read_records numbers", lambda: T.read_records(tmp))
case(g, "beside_paper unknown", lambda: T.beside_paper("mnist", {}))
case(g, "beside_paper empty", lambda: T.beside_paper("synthetic", {}))
g = "regimes"
for name, call in {
    "random_labels share 1.5": lambda: R.random_labels(np.zeros(5, int), 1.5, 0, 3),
    "random_labels classes 0": lambda: R.random_labels(np.zeros(5, int), 0.5, 0, 0),
    "random_labels nan": lambda: R.random_labels(np.zeros(5, int), nan, 0, 3),
    "wrong_answers 1 class": lambda: v(R.wrong_answers(np.zeros((3, 1)), np.zeros(3, int), 1.0, 0)),
    "unit_free constant": lambda: R.normalize_logit_scale(np.zeros((1, 3, 3))),
    "unit_free nan": lambda: R.normalize_logit_scale(np.full((1, 3, 3), nan)),
    "unit_free deviation -5": lambda: v(
        R.normalize_logit_scale(np.random.default_rng(0).normal(size=(1, 2, 3)), -5.0)
    ),
    "mixture full weights": lambda: P.mixture().unconstrain((0.5, 0.5, 4.0)),
    "mixture cut 2": lambda: [v(a) for a in P.mixture(cut=2.0).constrain(tf.constant([1.0, 1.0]))],
    "mixture temperature -1": lambda: [
        v(a) for a in P.mixture(temperature=-1.0).constrain(tf.constant([1.0, 1.0]))
    ],
    "mixture wall -1": lambda: v(P.mixture(wall=-1.0).project(tf.constant([0.3, 0.2]))),
    "early steps 0": lambda: v(R.exponential_decay(steps=0.0)(0)),
    "spoil factor -1": lambda: v(
        R.corrupt(
            {"y": np.zeros((1, 2), int), "teacher_logits": np.ones((1, 2, 3))},
            R.Regime(factor=-1.0),
            [0],
        )["teacher_logits"]
    ),
}.items():
    case(g, name, call)
