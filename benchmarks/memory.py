"""The peak memory of one estimator on one student, in a process of its own: prints {"added_mb",
"peak_mb"} as JSON.

python -m benchmarks.memory conv one_step

Added is what the process grows by from just before the first step (data and TensorFlow loaded) to
the peak of three steps.
"""

import json
import os
import resource
import sys

os.environ.update(
    {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
)

from distillnb import horizons
from distillnb.hypergradient import init_student, plain_step
from distillnb.lab import benchmark
from distillnb.optimizers import sgd


def peak():
    "MB at the highest since `forget`."
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
    except OSError:  # not Linux: the highest ever
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget():
    "Let the peak begin anew at what the process holds now."
    try:
        with open("/proc/self/clear_refs", "w") as switch:
            switch.write("5")
    except OSError:
        pass


def main(name, estimator):
    import tensorflow as tf

    given, optimizer, K = benchmark.case(name), sgd(0.05), None
    if " " in estimator:
        kind, K = estimator.split()[0], int(estimator.split()[1])
        chosen = horizons.unrolled(K, recompute=kind == "recompute")
    else:
        chosen = benchmark.estimators()[estimator][0]
    student = init_student(given.weights, optimizer, given.non_trainable)
    student = horizons.with_tangents(student, given.lam) if estimator == "forward_mode" else student
    stack = (lambda v: tf.repeat(v[None], K, 0)) if K else tf.constant
    train, val = (
        {k: stack(v) for k, v in given.train.items()},
        {k: tf.constant(v) for k, v in given.val.items()},
    )

    def step(student, lam, train, val):
        if chosen is None:
            return plain_step(given.problem, optimizer, student, lam, train)[0]
        return chosen(given.problem, optimizer, student, lam, train, val).student

    call = tf.function(step, autograph=False).get_concrete_function(student, given.lam, train, val)
    forget()
    before = peak()
    for _ in range(3):
        student = call(student, given.lam, train, val)
    print(json.dumps({"added_mb": round(peak() - before, 1), "peak_mb": round(peak(), 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
