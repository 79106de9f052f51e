"""Calls that are right as they are, and calls that others answer well enough.

`RIGHT`: call -> (why, a check of what came back, or None). `FOREIGN`: call -> why.
"""

import math

import numpy as np


def _numbers(found):
    "All numbers in a nest."
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [n for part in found for n in _numbers(part)]
    return [float(found)] if isinstance(found, (int, float, np.number)) else []


def all_finite(found):
    return all(math.isfinite(n) for n in _numbers(found))


def nan_is_seen(found):
    return any(math.isnan(n) for n in _numbers(found))


def equals(*wanted):
    def _check(found):
        return np.allclose(_numbers(found), wanted, rtol=1e-4)

    return _check


def _said(found):
    return bool(found["said"])


def _right_records(found):
    return found["records"] == [{"unit": "v", "n": "v"}]


RIGHT = {}


def _declare(group, why, check, *names):
    RIGHT.update({f"{group}: {name}": (why, check) for name in names})


_declare(
    "losses",
    "whole numbers are numbers",
    all_finite,
    "soften integer logits",
    "soften int64 array",
    "soft_ce int logits",
    "hinton int logits",
)
_declare(
    "losses",
    "the same two losses as of an array",
    equals(2.40761, 2.40761),
    "cross_entropy numpy int logits",
    "cross_entropy list logits",
    "cross_entropy labels [2,1] column",
)
_declare(
    "losses", "False and True are 0 and 1", equals(1.40761, 0.40761), "cross_entropy bool labels"
)
_declare("losses", "a temperature for each example", all_finite, "soften T per example [2,1]")
_declare("losses", "nothing in, nothing out", None, "soften empty", "soften 0 classes")
_declare(
    "losses",
    "NaN stays NaN, and a value that a graph cannot refuse becomes NaN",
    nan_is_seen,
    "soften nan logits",
    "soften T variable -1 in tf.function",
    "cross_entropy label -1 under XLA",
    "soft_ce nan teacher",
    "soft_ce inf teacher",
)
_declare(
    "losses",
    "a class that is ruled out has the probability 0",
    all_finite,
    "soft_ce -inf teacher (masked class)",
    "soft_div -inf teacher (masked class)",
)
_declare(
    "losses", "three numbers are metaparameters", all_finite, "hinton lam tuple not Metaparameters"
)
_declare(
    "losses",
    "logits between 0 and 1 are logits",
    all_finite,
    "hinton teacher probabilities in place of logits",
)
_declare(
    "parametrization",
    "weights that sum to 1 may be 0 and 1",
    None,
    "unconstrained tied beta high 1.0",
)
_declare("parametrization", "three numbers are metaparameters", None, "unconstrain tuple")
_declare("parametrization", "NaN stays NaN", nan_is_seen, "constrain nan")
_declare("optimizers", "NaN is seen", nan_is_seen, "update negative step (adam)")
_declare("optimizers", "there is a pure rule", None, "from_keras Adagrad", "from_keras clipnorm")
_declare("extrapolation", "one metaparameter", None, "fit_line 1-D")
_declare(
    "routes", "a right call", equals(0.27), "one_step (right, for comparison)", "lam a numpy array"
)
_declare("routes", "the quadratic reads no batch", all_finite, "unrolled with no batches")
_declare("tables", "no pairs, no numbers", None, "paired empty")
_declare(
    "tables",
    "without spread there is no test",
    lambda found: found["p"] is None,
    "paired constant gains +0.1 up to rounding",
)
_declare("train", "a right call", all_finite, "(right)", "(right, batches)")
_declare(
    "train",
    "the same numbers in another dtype",
    all_finite,
    "labels float",
    "labels [80,1]",
    "x float64 (weights float32)",
    "x int",
    "sample_weight [80,1]",
    "weights float64",
)
_declare(
    "train",
    "it diverges, with a warning that says when and why",
    None,
    "diverging: rate 1e6",
    "diverging: outer rate 1e30 without project",
    "project goes nowhere (nan)",
)
_declare("train", "nothing is called", None, "every 0")
_declare(
    "named",
    "finite, as it should be",
    all_finite,
    "decoupled logits 1e5",
    "decoupled two classes",
    "standardised constant logits",
)
_declare(
    "features",
    "NaN is seen",
    nan_is_seen,
    "hint nan",
    "of_rows 3 of 3 under XLA",
    "of_rows -1 under XLA",
)
_declare("features", "no attention anywhere is no difference", equals(0, 0), "attention zero maps")
_declare("workers", "a right call", all_finite, "(right)")
_declare("batches", "no weights are given", None, "as_split 3-tuple with None")
_declare("fit data", "a right call", all_finite, "(right call, for comparison)")
_declare(
    "fit data",
    "the same numbers in another dtype",
    all_finite,
    "x integer",
    "x float64",
    "teacher logits integers",
    "teacher logits float64",
    "sample_weight [80,1]",
)
_declare(
    "fit data",
    "few examples, and Keras trains on them as well",
    all_finite,
    "one class only in train labels",
    "train one example",
)
_declare(
    "fit data",
    "the logarithm of probabilities is taken, with a warning",
    all_finite,
    "teacher gives probabilities (array)",
    "teacher model ends in softmax",
)
_declare("fit data", "a binary task", all_finite, "student with one output, labels 0")
_declare(
    "fit data",
    "a table without hashes of its inputs is believed",
    all_finite,
    "table of another data set with the same ids",
)
_declare(
    "fit data",
    "one shared example in a hundred is no leak",
    all_finite,
    "meta-validation shares one example of 80 (1 %)",
)
_declare(
    "fit data",
    "looked at after each epoch, as in Keras, never learned from",
    all_finite,
    "validation_data is the train set",
)
_declare(
    "compile", "Keras warns that eager code is not compiled", all_finite, "run_eagerly and jit"
)
_declare(
    "compile", "the solver fails, fit ends and says so", None, "hypergradient implicit in compile"
)
_declare("init", "three numbers are metaparameters", all_finite, "start tuple")
_declare("init", "a warning says that nothing is learned", all_finite, "loss ignores lam")
_declare("init", "Keras allows it", all_finite, "name with newline", "student unbuilt")
_declare(
    "Resume",
    "a right call",
    None,
    "(the same twice, more epochs)",
    "folder with a newline and unicode",
)
_declare("LearnedSchedule", "a right call", all_finite, "(right)")
_declare(
    "LearnedSchedule",
    "NaN is seen",
    lambda found: nan_is_seen(found[1]),
    "logits first, then label",
)
_declare(
    "Store calls",
    "kept as they are",
    None,
    "configuration with numpy int",
    "save strings",
    "save a scalar",
    "save notes nan",
    "save key with slash",
    "finish nan",
    "load missing",
    "contains None",
)
_declare(
    "Store calls",
    "what is handed out is a copy",
    lambda found: found[0]["a"] == 1,
    "records are mutable: caller changes one",
)
_declare(
    "Store files",
    "nothing is wrong",
    _right_records,
    "(right)",
    "folder is a symlink to the run",
    "folder copied",
    "npz is a symlink out of the folder",
    "commit number 10**400 in its name",
)
_declare(
    "Store files",
    "what fits is kept, what does not is told",
    lambda found: _right_records(found) and _said(found),
    "record twice, the same",
    "record twice, other content, valid hash",
    "record without unit",
    "record is a list",
    "record is null",
    "record with unit a list",
    "record not JSON with a right hash",
    "record is a bracket bomb with a right hash",
    "states swapped in from ANOTHER run (same unit name)",
    "old state renamed to be newest",
    "forged npz with a pickled object",
    "forged npz that is a bare pickle",
    "forged npz that is not a zip",
    "forged npz empty",
    "forged npz with a wrong CRC inside",
    "forged commit with more names than arrays",
    "forged commit without keys",
    "commit a list",
    "commit a bracket bomb",
    "commit is a folder",
    "npz is a folder",
    "npy header that says 8 TiB",
    "zip bomb 3 MB -> 3 GiB, memory limited to 2 GiB",
)
_declare(
    "Store files",
    "the records are of another run, and it is told",
    lambda found: not found["records"] and _said(found),
    "journal of another run copied in",
    "journal deleted",
)
_declare(
    "Store files",
    "what was deleted by hand is trained again",
    None,
    "journal empty",
    "states folder deleted",
    "newest state deleted (silently older)",
    "both states deleted",
)
_declare(
    "Store files",
    "the child is refused, the parent goes on",
    lambda found: found["records"] == [{"unit": "parent"}],
    "forked child writes too (shares the lock)",
)
_declare(
    "Store files",
    "nothing is lost",
    lambda found: found[0] == 80 and not found[1:][0],
    "four threads finish 80 units",
)
_declare(
    "bit flips",
    "no flip gives a wrong answer",
    lambda found: found["wrong"][0] == found["error"][0] == 0,
    "flips in every file",
)

FOREIGN = {
    "compile: metrics BinaryAccuracy": "Keras's metric, which is asked for [batch] and [batch, 3]",
    "compile: metrics mse": "the same",
    "losses: soft_ce unknown static shapes other classes in graph": "our words, raised by a graph",
}
