"""Random problems against retraining: every exact estimator to the hypergradient, on whatever the
library can train.

make gradcheck N=1000 a thousand problems, one process for each core python benchmarks/gradcheck.py
--seed 17 one problem, described at length

Seeds that end in 1 or 6 are students for sequences: words looked up in a table, LSTM, GRU,
attention, masks; many of them with a gradient that is clipped in one of three ways. Forward mode
takes part in them only where TensorFlow has it, not through a loop in a compiled function.

A problem is a pure function of its seed: an architecture, an optimizer in the middle of its
training, K steps, batches, metaparameters. In float64 the hypergradient g of each exact estimator
(K = 1: `one_step`, `nested_tape`, `forward_product`; K > 1: `unrolled` with and without
`recompute`, `forward_mode`) must agree with f, the slope of the outer loss of students that were
retrained by K plain steps with nudged metaparameters:

|g - f| <= 1e-7 |f| + 1e-10 scale, scale = |outer loss after the K steps|

for every component; vectors (per-class metaparameters) are nudged along three random directions. A
nudge is relative: one unit of a raw metaparameter is its own size, one unit of a smooth or
logarithmic coordinate is 1, and directions have length 1 in these units. So f is the change of the
outer loss per relative change of a metaparameter, and scale is the outer loss.

f is a central difference, extrapolated (Richardson) over steps h, h/2, h/4, h/8, from h = 1/16 on
and down to 6e-11 until its own error estimate is at most half of the tolerance. The estimate is
the largest of: the disagreement between the last entries of the extrapolation table, that with the
table before, the rounding of the outer loss over the smallest step, and what is left of f(h) +
f(-h) - 2 f(0) over h, which vanishes with h unless the one-sided slopes differ. Where no step is
good enough, a problem counts as a "kink" if something in it has kinks (relu and its like, the
second derivative of elu, max-pool, a clipped gradient, the |g| in Adam's root at g = 0). Otherwise
it is "chaotic" if changing the last bit of every weight moves the outer loss by so much that no
difference of it over such a step could be good enough; else "unresolved". None of them is a pass,
and an unresolved problem fails the run. So does an estimator that raises, is not finite, or does
not end at the outer loss of the retrained student.

The first estimator in float32 is compared with float64 on the same inputs, rounded to float32 for
both: max |g32 - g64| / (max |g64| + 1e-3 scale). The median of all must be at most 1e-6, and 99 %
within 1e-4 of those problems that float32 can state: where rounding the inputs alone moves g64 by
more than 1e-4 in the same measure, another problem is solved, and no arithmetic could mend it.
Those are counted and named. Rounding happens at every step, so beyond five steps the bound grows in
proportion to K. BatchNorm over a single number (one example, no pixels) is left out: its output is
constant, so the gradients before it are 0 exactly and rounding in float32, which Adam divides by
its own size. Fewer than thirty problems are named, not judged. Keras's Dropout draws
other masks in float32 than in float64, so problems with it are left out there; `Mask`, the same
layer with its draw always in float32, takes part. Softsign is not drawn: TensorFlow has no second
derivative of it, so that every estimator raises (LookupError: SoftsignGrad), `one_step` too.
"""

import argparse
import os
import sys
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

RTOL, ATOL = 1e-7, 1e-10
MEDIAN32, MOST32, FLOOR32, FEW32 = 1e-6, 1e-4, 1e-3, 30
LONG = 5  # steps from which on estimators run as graphs
LEVELS, WIDEST, FINEST = 4, 4, 34  # steps of one extrapolation; h goes from 2**-4 down to 2**-34

# ---- drawing a problem: numbers and names only

SMOOTH = ("tanh", "gelu", "sigmoid", "softplus", "silu", "mish")
KINKED = ("relu", "elu", "leaky_relu", "selu")
NORMS = ("batch_norm", "layer_norm", "group_norm")
SEQUENCES = ("embedding", "masked_lstm", "gru", "unrolled_lstm", "attention")
LOOPS = {"masked_lstm", "gru"}
CLIPS = ("clip", "clip_norm", "global_clip_norm")
VOCABULARY = 12
POOLS = ("max_pool", "overlapping_max_pool", "average_pool")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "rmsprop_momentum", "adam", "adamw")
SCHEDULES = ("cosine", "exponential", "warmup", "piecewise")
METAPARAMETERS = (
    "smooth",
    "smooth_tied",
    "raw",
    "raw_tied",
    "class_temperatures",
    "class_weights",
    "nest",
)


class Spec(NamedTuple):
    "A random problem in words and numbers."

    seed: int
    shape: tuple  # of one example
    layers: tuple  # (kind, activation) pairs
    classes: int
    batch: int
    K: int  # the horizon
    warm: int  # steps taken before, so that moments and averages are not zero
    optimizer: str
    numbers: dict  # the optimizer's
    schedule: str | None
    metaparameters: str
    lam: tuple  # beta1, beta2, T
    t_squared: bool
    soft: str
    compiled: bool  # estimators in graph mode?


def draw(seed):
    "The problem of a seed."
    spec = _draw(seed)
    return _as_sequence(spec, np.random.default_rng([seed, 4])) if seed % 5 == 1 else spec


def _as_sequence(spec, rng):
    "The same problem for a student that reads a sequence."
    kind, steps = SEQUENCES[rng.integers(len(SEQUENCES))], int(rng.integers(3, 7))
    words = kind in ("embedding", "masked_lstm")
    layers = ((kind, None), ("dense", SMOOTH[rng.integers(len(SMOOTH))]))
    numbers = {name: value for name, value in spec.numbers.items() if name not in CLIPS}
    if rng.random() < 0.5:
        numbers[CLIPS[rng.integers(3)]] = float(np.exp(rng.uniform(np.log(0.01), 0)))
    shape = (steps,) if words else (steps, int(rng.integers(2, 5)))
    return spec._replace(shape=shape, layers=layers, numbers=numbers)


def _draw(seed):
    rng = np.random.default_rng(seed)

    def pick(*options, p=None):
        return options[rng.choice(len(options), p=p)]

    def log_uniform(low, high):
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    images, K = rng.random() < 0.5, pick(1, 2, 5, 20, p=[0.4, 0.25, 0.2, 0.15])
    size = int(rng.integers(5, 9))
    shape = (size, size, int(rng.integers(1, 4))) if images else (int(rng.integers(2, 9)),)
    kind, tied = pick(*METAPARAMETERS), log_uniform(0.05, 1) / 1.06
    lam = (log_uniform(0.05, 3), log_uniform(0.05, 3), log_uniform(0.05, 100))
    lam = (tied, 1 - tied, lam[2]) if kind.endswith("tied") else lam
    optimizer = pick(*OPTIMIZERS)
    scalar = kind.startswith(("smooth", "raw")) or kind == "class_weights"
    return Spec(
        seed,
        shape,
        _layers(rng, pick, images, size),
        int(round(log_uniform(2, 100))),
        int(round(log_uniform(1, 64))),
        K,
        pick(0, 3),
        optimizer,
        _numbers(rng, pick, log_uniform, optimizer, lam),
        pick(None, None, *SCHEDULES[:4]),
        kind,
        lam,
        bool(scalar and rng.random() < 0.4),
        pick("soft_cross_entropy", "soft_divergence"),
        rng.random() < 0.25,
    )


def _layers(rng, pick, images, size):
    def activation():
        return pick(*SMOOTH) if rng.random() < 0.7 else pick(*KINKED)

    layers = []
    for _ in range(rng.integers(1, 4)):
        layers.append((pick("conv" if images else "dense", "residual", p=[0.7, 0.3]), activation()))
        if rng.random() < 0.5:
            layers.append((pick(*NORMS), None))
        if images and size >= 4 and rng.random() < 0.4:
            kind = pick(*POOLS)
            size = size - 1 if kind.startswith("over") else size // 2
            layers.append((kind, None))
        if rng.random() < 0.25:
            layers.append((pick("dropout", "mask"), None))
    return tuple(layers)


def _numbers(rng, pick, log_uniform, optimizer, lam):
    adaptive = optimizer.startswith(("rms", "adam"))
    steepness = lam[0] + lam[1] * max(1, 1 / lam[2])  # of the inner loss in the logits, at most
    numbers = {"rate": log_uniform(1e-3, 3e-2) if adaptive else log_uniform(0.01, 0.5) / steepness}
    if optimizer in ("momentum", "nesterov", "rmsprop_momentum"):
        numbers["momentum"] = float(rng.uniform(0.3, 0.95))
    if adaptive:
        numbers["epsilon"] = pick(1e-7, 1e-4, 1e-2)
    if rng.random() < 0.3:
        numbers["weight_decay"] = log_uniform(1e-3, 0.1)
    if rng.random() < 0.1:
        numbers["clip"] = log_uniform(0.01, 1)
    return numbers | ({"nesterov": True} if optimizer == "nesterov" else {})


def has_kinks(spec):
    "Whether something in the problem is not smooth."
    parts = {name for layer in spec.layers for name in layer}
    return (
        bool(parts & {*KINKED, *POOLS[:2]})
        or any(name in spec.numbers for name in CLIPS)
        or spec.optimizer.startswith("adam")
    )


def describe(spec):
    "One line."
    numbers = " ".join(f"{name}={value:.3g}" for name, value in spec.numbers.items())
    layers = " ".join(
        kind + (f"({activation})" if activation else "") for kind, activation in spec.layers
    )
    b1, b2, T = spec.lam
    return (
        f"{'x'.join(map(str, spec.shape))} {layers} -> {spec.classes} classes, batch "
        f"{spec.batch}, K={spec.K} after {spec.warm}; "
        f"{spec.optimizer} {numbers} {spec.schedule or 'constant'}; {spec.metaparameters} "
        f"b1={b1:.3g} b2={b2:.3g} T={T:.3g} "
        f"{spec.soft}{' T^2' * spec.t_squared}{', compiled' * spec.compiled}"
    )


# ---- building it


class Task(NamedTuple):
    "The arguments of an estimator, and what lam looks like as a plain point."

    problem: Any
    optimizer: Any
    student: Any
    pack: Any  # a point [P] -> lam
    point: np.ndarray  # where the hypergradient is asked
    unit: np.ndarray  # the natural size of a nudge of each component
    train: dict  # [K, batch, ...]
    val: dict


def _model(spec, dtype):
    import keras

    L = keras.layers
    words = _reads_words(spec)
    x = start = keras.Input(spec.shape, dtype="int32" if words else dtype)
    for number, (kind, activation) in enumerate(spec.layers):
        x = _layer(L, kind, activation, x, spec.seed + number, dtype)(x)
    x = L.Flatten(dtype=dtype)(x) if len(x.shape) > 2 else x
    return keras.Model(start, L.Dense(spec.classes, dtype=dtype)(x))


def _reads_words(spec):
    return spec.layers[0][0] in ("embedding", "masked_lstm")


def _sequence(L, kind, x, dtype):
    "The layer that reads a sequence and gives a vector."
    if kind == "embedding":
        table = L.Embedding(VOCABULARY, 4, dtype=dtype)
        return lambda x: L.GlobalAveragePooling1D(dtype=dtype)(table(x))
    if kind == "masked_lstm":
        table = L.Embedding(VOCABULARY, 4, mask_zero=True, dtype=dtype)
        return lambda x: L.LSTM(4, dtype=dtype)(table(x))
    if kind == "attention":
        attend = L.MultiHeadAttention(2, 3, dtype=dtype)
        return lambda x: L.Flatten(dtype=dtype)(attend(x, x))
    return L.GRU(4, dtype=dtype) if kind == "gru" else L.LSTM(4, unroll=True, dtype=dtype)


def _layer(L, kind, activation, x, seed, dtype):
    if kind in SEQUENCES:
        return _sequence(L, kind, x, dtype)
    options = {"activation": activation, "dtype": dtype}

    def wide(n):
        return (
            L.Dense(n, **options)
            if len(x.shape) == 2
            else L.Conv2D(n, 3, padding="same", **options)
        )

    if kind == "residual":
        return lambda x: L.Add(dtype=dtype)([x, wide(x.shape[-1])(x)])
    if kind == "group_norm":
        return L.GroupNormalization(groups=2 if x.shape[-1] % 2 == 0 else 1, dtype=dtype)
    make = {
        "dense": lambda: wide(6),
        "conv": lambda: wide(4),
        "batch_norm": lambda: L.BatchNormalization(momentum=0.9, dtype=dtype),
        "layer_norm": lambda: L.LayerNormalization(dtype=dtype),
        "max_pool": lambda: L.MaxPooling2D(2, dtype=dtype),
        "overlapping_max_pool": lambda: L.MaxPooling2D(2, 1, dtype=dtype),
        "average_pool": lambda: L.AveragePooling2D(2, dtype=dtype),
        "dropout": lambda: L.Dropout(0.3, seed=seed, dtype=dtype),
        "mask": lambda: _mask()(0.3, seed=seed, dtype=dtype),
    }
    return make[kind]()


def _mask():
    import keras
    import tensorflow as tf

    class Mask(keras.layers.Dropout):
        """Dropout whose draw is float32 whatever its dtype, so that every precision drops the same
        units.
        """

        def call(self, inputs, training=False):
            return inputs * tf.cast(
                super().call(tf.ones_like(inputs, tf.float32), training=training), inputs.dtype
            )

    return Mask


def _weights(rng, model):
    "Random weights and none of the ties that zeros make; gammas near 1."
    drawn = []
    for v in model.trainable_variables:
        noise, fan_in = rng.normal(size=v.shape), np.prod(v.shape[:-1])
        drawn.append(
            noise / np.sqrt(fan_in) if len(v.shape) > 1 else 0.1 * noise + (v.name == "gamma")
        )
    return drawn


def _batches(rng, spec, *shape):
    x = rng.normal(size=(*shape, *spec.shape))
    if _reads_words(spec):
        x = np.minimum(np.abs(4 * x), VOCABULARY - 1).astype("int32")
    t = 3 * rng.normal(size=(*shape, spec.classes))
    y = np.where(rng.random(shape) < 0.7, t.argmax(-1), rng.integers(0, spec.classes, shape))
    return {"x": x, "y": y.astype("int32"), "teacher_logits": t}


def _optimizer(spec):
    import keras

    from distillnb import optimizers

    rate = spec.numbers["rate"]
    schedules = {
        None: lambda: rate,
        "cosine": lambda: optimizers.cosine(rate, 25, rate / 10),
        "exponential": lambda: optimizers.exponential(rate, 0.5, 10),
        "warmup": lambda: optimizers.warmup(rate, 5),
        "piecewise": lambda: keras.optimizers.schedules.PiecewiseConstantDecay(
            [1, 4], [rate, rate / 2, rate / 4]
        ),
    }
    rule = {"momentum": "sgd", "nesterov": "sgd", "rmsprop_momentum": "rmsprop"}.get(
        spec.optimizer, spec.optimizer
    )
    return getattr(optimizers, rule)(**spec.numbers | {"rate": schedules[spec.schedule]()})


def _problem(spec, model, rng):
    "The bilevel problem, the way from a point to lam, the point, and the size of a nudge."
    from distillnb import losses
    from distillnb.parametrization import box, unconstrained
    from distillnb.problem import distillation

    soft = getattr(losses, spec.soft)
    if spec.metaparameters.startswith(("smooth", "raw")):
        tie = "sum_to_one" if spec.metaparameters.endswith("tied") else None
        wide = (1e-3, 1e-3, 0.01), (0.999, 0.999, 1000.0) if tie else (10.0, 10.0, 1000.0)
        raw = spec.metaparameters.startswith("raw")
        parametrization = (box if raw else unconstrained)(*wide, tie)
        point = parametrization.unconstrain(losses.Metaparameters(*spec.lam), "float64").numpy()
        unit = np.abs(point) if raw else np.ones_like(point)
        return (
            distillation(model, parametrization, spec.t_squared, soft),
            lambda point: point,
            point,
            unit,
        )
    per_class, pack, point = _per_class(spec, rng)
    problem = distillation(model, unconstrained())
    return (
        problem._replace(inner=_inner(spec, model, per_class, soft)),
        pack,
        point,
        np.ones_like(point),
    )


def _per_class(spec, rng):
    "lam -> Metaparameters as a function of the labels, the way from a point to lam, the point."
    import tensorflow as tf

    from distillnb.losses import Metaparameters

    (b1, b2, T), C = spec.lam, spec.classes

    def near(value):
        return np.log(value) + 0.3 * rng.normal(size=C)

    def weigh(u, y):
        return tf.gather(tf.exp(u), y)

    if spec.metaparameters == "class_temperatures":
        return lambda lam, y: Metaparameters(b1, b2, tf.exp(lam)), lambda point: point, near(T)
    if spec.metaparameters == "class_weights":
        return lambda lam, y: Metaparameters(weigh(lam, y), b2, T), lambda point: point, near(b1)

    def both(lam, y):
        return Metaparameters(weigh(lam["weights"], y), b2, tf.exp(lam["temperatures"]))

    return (
        both,
        lambda point: {"temperatures": point[:C], "weights": point[C:]},
        np.concatenate([near(T), near(b1)]),
    )


def _inner(spec, model, per_class, soft):
    import tensorflow as tf

    from distillnb.losses import hinton
    from distillnb.second_order import with_safe_layers

    student = with_safe_layers(model)

    def _loss(weights, lam, batch, non_trainable=()):
        z, after = student.stateless_call(weights, non_trainable, batch["x"], training=True)
        losses = hinton(
            batch["y"], z, batch["teacher_logits"], per_class(lam, batch["y"]), spec.t_squared, soft
        )
        return tf.reduce_mean(losses), tf.nest.pack_sequence_as(
            non_trainable, tf.nest.flatten(after)
        )

    return _loss


def build(spec, dtype="float64", begun=None):
    "The task of a problem; in another dtype its student is begun's, rounded."
    import tensorflow as tf

    from distillnb.hypergradient import init_student

    rng = np.random.default_rng([spec.seed, 1])
    model = _model(spec, dtype)
    problem, pack, point, unit = _problem(spec, model, rng)
    optimizer, weights = _optimizer(spec), _weights(rng, model)
    warm, train, val = (
        _batches(rng, spec, *shape)
        for shape in ((spec.warm, spec.batch), (spec.K, spec.batch), (spec.batch,))
    )
    warm, train, val = (
        tf.nest.map_structure(lambda a: _as(a, dtype), each) for each in (warm, train, val)
    )
    student = init_student(
        [_as(w, dtype) for w in weights],
        optimizer,
        [v.value for v in model.non_trainable_variables],
    )
    task = Task(problem, optimizer, student, pack, point, unit, train, val)
    if begun is not None:
        return task._replace(student=tf.nest.map_structure(lambda a: _as(a, dtype), begun))
    return task._replace(student=_walk(_stepper(task), student, pack(_as(point, dtype)), warm))


def _as(a, dtype):
    import tensorflow as tf

    a = tf.convert_to_tensor(a)
    return tf.cast(a, dtype) if a.dtype.is_floating else a


# ---- the oracle: students retrained with nudged metaparameters


def _nth(batches, k):
    return {name: a[k] for name, a in batches.items()}


def _stepper(task):
    import tensorflow as tf

    from distillnb.hypergradient import plain_step

    def step(student, lam, batch):
        return plain_step(task.problem, task.optimizer, student, lam, batch)[0]

    return tf.function(step, autograph=False)


def _walk(step, student, lam, batches):
    for k in range(batches["y"].shape[0]):
        student = step(student, lam, _nth(batches, k))
    return student


def retrained(task):
    "A function: a point -> the outer loss after K plain steps."
    import tensorflow as tf

    from distillnb.hypergradient import plain_step

    K = task.train["y"].shape[0]

    def _arrive(student, lam):
        def step(k, student):
            return (
                k + 1,
                plain_step(task.problem, task.optimizer, student, lam, _nth(task.train, k))[0],
            )

        _, student = tf.while_loop(
            lambda k, _: k < K, step, (tf.constant(0), student), maximum_iterations=K
        )
        return task.problem.outer(student.weights, task.val, student.non_trainable)

    arrive = tf.function(_arrive, autograph=False)
    return lambda point: float(arrive(task.student, task.pack(tf.constant(point))))


class Slope(NamedTuple):
    "A difference quotient, its own error estimate, its step."

    value: float
    error: float
    h: float


def slope(function, at, direction, enough):
    """The slope of a function along a direction, by the first step whose error estimate is enough,
    else the best.
    """
    centre, ends, found = function(at), [], [Slope(np.nan, np.inf, 0.0)]
    for j in range(WIDEST, FINEST + 1):
        h = 2.0**-j
        ends.append((h, function(at + h * direction), function(at - h * direction)))
        if len(ends) >= LEVELS:
            now = _richardson(ends[-LEVELS:], centre)
            found.append(
                now._replace(error=np.nanmax([now.error, abs(now.value - found[-1].value)]))
            )
            if found[-1].error <= enough(now.value):
                break
    return min(found, key=lambda s: s.error)


def _richardson(ends, centre):
    """Extrapolate central differences at h, h/2, h/4, ..., and see whether the one-sided slopes
    agree.
    """
    rows = [[(up - down) / (2 * h) for h, up, down in ends]]
    kinks = [
        [(up + down - 2 * centre) / h for h, up, down in ends]
    ]  # about h times the second derivative
    for power in range(1, len(ends)):
        rows.append(_extrapolate(rows[-1], 4**power))
        kinks.append(_extrapolate(kinks[-1], 2 * 4 ** (power - 1)))
    h, value = ends[-1][0], rows[-1][0]
    rounding = 4 * np.finfo(float).eps * abs(centre) / h
    return Slope(
        value,
        max(rounding, abs(value - rows[-2][-1]), abs(value - rows[-3][-1]), abs(kinks[2][-1])),
        h,
    )


def _extrapolate(row, factor):
    return [b + (b - a) / (factor - 1) for a, b in zip(row, row[1:], strict=False)]


# ---- the estimators


def estimators(spec):
    "Names of the estimators that apply; of the expensive ones for K > 1 a random choice."
    loop = spec.layers[0][0] in LOOPS
    if spec.K == 1:
        forward = [] if loop and spec.compiled else ["forward_product"]
        return ["one_step", "nested_tape", *forward]
    vector = spec.metaparameters.startswith(("smooth", "raw")) or (
        spec.metaparameters != "nest" and spec.classes <= 3
    )
    chance = np.random.default_rng([spec.seed, 2]).random()
    if vector and chance < 0.4 and not (loop and (spec.compiled or spec.K >= LONG)):
        return ["unrolled", "forward_mode"]
    return ["unrolled", "recompute"] if spec.K < 20 or chance < 0.7 else ["recompute"]


def take(name, spec, task):
    "The Step of an estimator."
    import tensorflow as tf

    from distillnb import horizons, hypergradient

    lam = task.pack(_as(task.point, task.val["teacher_logits"].dtype))
    if name == "forward_mode":
        return _forward(spec, task, lam)
    estimator = {
        "unrolled": lambda: horizons.unrolled(spec.K),
        "recompute": lambda: horizons.unrolled(spec.K, recompute=True),
        "forward_product": hypergradient.forward_product,
    }.get(name, lambda: getattr(hypergradient, name))()
    train = _nth(task.train, 0) if spec.K == 1 else task.train
    problem, graph, long = (
        task.problem,
        lambda call: tf.function(call, autograph=False),
        spec.K >= LONG,
    )
    if (
        name == "unrolled" and long
    ):  # a graph of all steps is long to trace, single operations are long to run
        problem = problem._replace(inner=graph(problem.inner), outer=graph(problem.outer))

    def call(student, lam):
        return estimator(problem, task.optimizer, student, lam, train, task.val)

    whole = name == "recompute" if long else spec.compiled
    return (graph(call) if whole else call)(task.student, lam)


def _forward(spec, task, lam):
    import tensorflow as tf

    from distillnb.horizons import forward_mode, with_tangents

    def call(student, batch):
        return forward_mode(task.problem, task.optimizer, student, lam, batch, task.val)

    call = tf.function(call, autograph=False) if spec.compiled or spec.K >= LONG else call
    student = with_tangents(task.student, lam)
    for k in range(spec.K):
        step = call(student, _nth(task.train, k))
        student = step.student
    return step


def flat(hypergradient):
    "A hypergradient as a float64 vector [P]."
    import tensorflow as tf

    return np.concatenate(
        [np.ravel(a.numpy()).astype("float64") for a in tf.nest.flatten(hypergradient)]
    )


# ---- the verdict


class Outcome(NamedTuple):
    "What became of a problem."

    seed: int
    verdict: str  # pass, fail, kink, chaotic or unresolved
    ratio: float  # largest |g - f| / tolerance of the components with a good f
    error32: float  # of the first estimator in float32; nan: not compared
    moved32: float  # how far inputs rounded to float32 move the float64 one, in the same measure
    seconds: float
    notes: list


def directions(spec, task):
    "Nudges [n, P]: each component for scalars, three random directions of length 1 for vectors."
    if spec.metaparameters.startswith(("smooth", "raw")):
        return np.diag(task.unit)
    drawn = np.random.default_rng([spec.seed, 3]).normal(size=(3, task.point.size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def judge(spec):
    "Verdict, ratio, float32 error and notes of a problem."
    task = build(spec)
    function, nudges = retrained(task), directions(spec, task)
    scale = abs(function(task.point))

    def tolerance(f):
        return RTOL * abs(f) + ATOL * scale

    slopes = [slope(function, task.point, nudge, lambda f: tolerance(f) / 2) for nudge in nudges]
    good = np.array([s.error <= tolerance(s.value) / 2 for s in slopes])
    f = np.array([s.value for s in slopes])
    notes = [f"outer loss {scale:.6g}"] + [
        f"f = {s.value:.12g}, error {s.error:.1e}, h = {s.h:.1e}" for s in slopes
    ]
    ratio, first = 0.0, None
    for name in estimators(spec):
        step = take(name, spec, task)
        g = nudges @ flat(step.hypergradient)
        first = g if first is None else first
        ratios = np.abs(g - f) / tolerance(f)
        there = abs(float(step.outer_loss) - scale) <= 1e-12 * scale and np.isfinite(g).all()
        ratio = max([ratio, *ratios[good]]) if there else np.inf
        notes.append(
            f"{name}: g = {g}, |g - f| / tolerance = "
            f"{ratios.round(4)}{'' if there else ', arrives elsewhere'}"
        )
    verdict = (
        "fail" if not ratio <= 1 else "pass" if good.all() else "kink" if has_kinks(spec) else None
    )
    if verdict is None:
        noise = abs(retrained(_shaken(task))(task.point) - function(task.point))
        bad = [s for s, well in zip(slopes, good, strict=True) if not well]
        verdict = (
            "chaotic" if all(noise / s.h > tolerance(s.value) / 2 for s in bad) else "unresolved"
        )
        notes.append(f"the last bit of every weight moves the outer loss by {noise:.1e}")
    return verdict, ratio, *_float32(spec, task, nudges, first, scale), notes


def _shaken(task):
    "The task with the last bit of every weight changed."
    import tensorflow as tf

    weights = [tf.constant(np.nextafter(w.numpy(), np.inf)) for w in task.student.weights]
    return task._replace(student=task.student._replace(weights=weights))


def _again(spec, task, nudges):
    name = "recompute" if spec.K >= LONG else estimators(spec)[0]
    return nudges @ flat(take(name, spec._replace(compiled=False), task).hypergradient)


def _normalises_one_number(spec):
    "Whether a BatchNorm sees one number for each feature, whose variance is 0."
    size = spec.shape[0] if len(spec.shape) == 3 else 1
    for kind, _ in spec.layers:
        if kind == "batch_norm" and spec.batch * size**2 == 1:
            return True
        size = size - 1 if kind.startswith("over") else size // 2 if "pool" in kind else size
    return False


def _float32(spec, task, nudges, g, scale):
    "Error of float32 on rounded inputs, and what the rounding of the inputs alone does in float64."
    import tensorflow as tf

    if any(kind == "dropout" for kind, _ in spec.layers) or _normalises_one_number(spec):
        return np.nan, np.nan
    rounded = build(spec, "float32", task.student)

    def exact(tree):
        return tf.nest.map_structure(lambda a: _as(a, "float64"), tree)

    same = task._replace(
        student=exact(rounded.student),
        train=exact(rounded.train),
        val=exact(rounded.val),
        point=task.point.astype("float32").astype("float64"),
    )
    g32, g64 = _again(spec, rounded, nudges), _again(spec, same, nudges)

    def measure(a, b):
        return float(np.abs(a - b).max() / (np.abs(b).max() + FLOOR32 * scale))

    return measure(g32, g64), measure(g64, g)


def _keras():
    "Keras, imported without TensorFlow's log lines, which ignore Python's stderr."
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import keras
        import tensorflow as tf
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
    tf.get_logger().setLevel("ERROR")
    return keras


def check(seed):
    "The Outcome of a seed, whatever happens on the way."
    keras = _keras()
    began = time.perf_counter()
    try:
        found = judge(draw(seed))
    except Exception as error:
        found = "fail", np.inf, np.nan, np.nan, [f"{type(error).__name__}: {str(error)[:300]}"]
    keras.backend.clear_session()
    return Outcome(seed, *found[:4], time.perf_counter() - began, found[4])


# ---- many problems


def run(seeds, workers):
    """The outcomes of many seeds; all processes are replaced after fifty problems each, so that
    memory is bounded.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from tqdm import tqdm

    for kind in ("INTRA", "INTER"):
        os.environ.setdefault(f"TF_NUM_{kind}OP_THREADS", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with tqdm(total=len(seeds), disable=not sys.stderr.isatty()) as bar:
        for start in range(
            0, len(seeds), 50 * workers
        ):  # not max_tasks_per_child, which can hang (CPython issue 115634)
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                waiting = {
                    seed: pool.submit(check, seed) for seed in seeds[start : start + 50 * workers]
                }
                for seed, future in waiting.items():
                    try:
                        yield future.result()
                    except BrokenProcessPool as error:
                        yield Outcome(seed, "fail", np.inf, np.nan, np.nan, 0.0, [str(error)])
                    bar.update()


VERDICTS = ("pass", "fail", "kink", "chaotic", "unresolved")


def tell(outcomes, seconds):
    "Print the summary; True if nothing failed."
    by = {verdict: [o for o in outcomes if o.verdict == verdict] for verdict in VERDICTS}
    print(
        f"{len(outcomes)} problems, "
        + ", ".join(f"{len(found)} {verdict}" for verdict, found in by.items())
    )
    for verdict in ("fail", "chaotic", "unresolved"):
        for o in by[verdict]:
            print(
                f"\n{verdict}, seed {o.seed}: {describe(draw(o.seed))}\n  " + "\n  ".join(o.notes)
            )
    if by["kink"]:
        print("kinks, seeds:", *(o.seed for o in by["kink"]))
    worst = max(outcomes, key=lambda o: o.ratio)
    print(
        f"worst: {worst.ratio:.3g} of its tolerance, seed {worst.seed}: "
        f"{describe(draw(worst.seed))}"
    )
    precise = _tell32([o for o in outcomes if np.isfinite(o.error32)])
    each = [o.seconds for o in outcomes]
    print(
        f"{seconds:.0f} s in all; one problem takes {np.mean(each):.2f} s, at most "
        f"{max(each):.1f} s"
    )
    return not by["fail"] and not by["unresolved"] and precise


def _tell32(outcomes):
    if not outcomes:
        return True
    stated = [o for o in outcomes if o.moved32 <= MOST32]
    errors = np.array([o.error32 for o in outcomes])
    judged = np.array([o.error32 / max(1, draw(o.seed).K / LONG) for o in stated])
    others = [o.seed for o in outcomes if not o.moved32 <= MOST32]
    print(
        f"float32, {len(errors)} problems: median {np.median(errors):.1e}, 99 % "
        f"{np.quantile(errors, 0.99):.1e}"
    )
    print(
        f"  {len(others)} that float32 cannot state, since rounded inputs move them by more than "
        f"{MOST32:g}, seeds:",
        *others,
    )
    if not stated:
        return len(errors) < FEW32
    most = np.quantile(judged, 0.99)
    print(f"  the other {len(judged)}, for {LONG} steps: 99 % {most:.1e}, "
          f"worst {judged.max():.1e}, "
          "seeds of the worst:",
          *(stated[i].seed for i in np.argsort(judged)[: -6 : -1]))  # fmt: skip
    enough = len(errors) < FEW32 or np.median(errors) <= MEDIAN32 and most <= MOST32
    if not enough:
        print(f"float32 is worse than promised: median {MEDIAN32:g}, 99 % {MOST32:g}")
    return enough


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("problems", type=int, nargs="?", default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED0", help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, help="only this problem, described at length")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = check(options.seed)
        print(describe(draw(options.seed)), *outcome.notes, sep="\n  ")
        print(
            f"{outcome.verdict}, {outcome.ratio:.3g} of its tolerance, float32 "
            f"{outcome.error32:.1e} "
            f"(rounded inputs move it by {outcome.moved32:.1e}), {outcome.seconds:.1f} s"
        )
        sys.exit(outcome.verdict in ("fail", "unresolved"))
    began = time.perf_counter()
    outcomes = list(run(range(options.first, options.first + options.problems), options.workers))
    sys.exit(not tell(outcomes, time.perf_counter() - began))


if __name__ == "__main__":
    main()
