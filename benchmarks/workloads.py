"""The four workloads of the benchmarks, made from one seed by NumPy alone, so that every framework
has the same numbers.

Dense kernels are [in, out], convolutions [height, width, in, out], images [batch, height, width,
channels]. The nets: linear 3-2; mlp 784-128-10 with ReLU; conv three times (3x3 same, ReLU, 2x2
max-pool) with 8, 16, 32 channels, then dense 64 ReLU and dense 10; resnet ResNet-8,
post-activation, batch norm with the batch's statistics (epsilon 1e-3) and a 1x1 projection where
the width grows. Weights are in the order in which a Keras model of these layers lists them.
"""

from typing import NamedTuple

import numpy as np

NAMES = ("linear", "mlp", "conv", "resnet")
LAM0 = np.array([0.6, 0.7, 3.0], "float32")  # beta1, beta2, T
RATE, OUTER_RATE = 0.05, 0.1  # of the student's SGD, of the metaparameters' SGD
RESTARTS, STEPS = 10, 2000  # of the whole synthetic experiment
WIDTHS = (16, 32, 64)  # of the stages of the resnet
SHAPES = {
    "linear": (3,),
    "mlp": (784,),
    "conv": (32, 32, 3),
    "resnet": (32, 32, 3),
}  # of one example


class Workload(NamedTuple):
    "A student to be trained, and one train and one validation batch."

    weights: list  # float32 arrays
    train: dict  # "x", "y" (int32 labels), "teacher_logits"
    val: dict  # "x", "y"


def weight_shapes(name):
    "The shapes of the weights, in order."
    if name == "linear":
        return [(3, 2), (2,)]
    if name == "mlp":
        return [(784, 128), (128,), (128, 10), (10,)]
    if name == "conv":
        convolutions = [((3, 3, a, b), (b,)) for a, b in ((3, 8), (8, 16), (16, 32))]
        return [shape for pair in convolutions for shape in pair] + [
            (512, 64),
            (64,),
            (64, 10),
            (10,),
        ]
    shapes, before = [(3, 3, 3, 16), (16,), (16,)], 16
    for width in WIDTHS:
        shapes += [
            (3, 3, before, width),
            (width,),
            (width,),
            (3, 3, width, width),
            (width,),
            (width,),
        ]
        shapes += [(1, 1, before, width)] if width != before else []
        before = width
    return [*shapes, (64, 10), (10,)]


def _initial(name, random):
    """Normal kernels of variance 1/inputs; small biases; batch norm's scales, the vectors after a
    kernel of the resnet, near 1.
    """
    weights, before = [], ()
    for shape in weight_shapes(name):
        noise = random.standard_normal(shape)
        if len(shape) > 1:
            weight = noise * np.sqrt(1 / np.prod(shape[:-1]))
        else:
            weight = 0.05 * noise + (name == "resnet" and len(before) == 4)
        weights.append(weight.astype("float32"))
        before = shape
    return weights


def _pictures(name, classes, random):
    "What the examples of each class look like before noise; smooth for images."
    if len(SHAPES[name]) == 1:
        return random.standard_normal((classes, *SHAPES[name])) / np.sqrt(SHAPES[name][0])
    coarse = random.standard_normal((classes, 8, 8, 3))
    return 0.3 * coarse.repeat(4, 1).repeat(4, 2)


def _batch(pictures, size, random):
    """Examples around the pictures, with labels of which a fifth is wrong, and a teacher who half
    knows.
    """
    classes = len(pictures)
    truth = random.integers(0, classes, size)
    x = pictures[truth] + random.standard_normal((size, *pictures.shape[1:]))
    y = np.where(random.uniform(size=size) < 0.2, random.integers(0, classes, size), truth)
    teacher = 2 * random.standard_normal((size, classes)) + 3 * np.eye(classes)[truth]
    return {
        "x": x.astype("float32"),
        "y": y.astype("int32"),
        "teacher_logits": teacher.astype("float32"),
    }


def workload(name):
    "One of the four, the same in every process."
    random = np.random.default_rng((20, NAMES.index(name)))
    size, classes = (100, 2) if name == "linear" else (128, 10)
    weights, pictures = _initial(name, random), _pictures(name, classes, random)
    train, val = _batch(pictures, size, random), _batch(pictures, size, random)
    del val["teacher_logits"]
    return Workload(weights, train, val)


def restarts():
    """Where the restarts of the whole synthetic experiment begin: metaparameters [10, 3], and
    weights [10, ...] of linear.
    """
    random = np.random.default_rng(21)
    uniform = random.uniform(size=(RESTARTS, 3))
    lam = np.column_stack([uniform[:, :2], 1 + 9 * uniform[:, 2]]).astype("float32")
    return lam, [
        0.3 * random.standard_normal((RESTARTS, *shape)).astype("float32")
        for shape in weight_shapes("linear")
    ]
