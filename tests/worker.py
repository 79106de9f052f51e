"""A worker for test_workers.py. Words: a folder (of the first worker), or "-". It says "saved" after each save.

Its last line is JSON: the path of the metaparameters, and the losses.
"""

import json
import os
import sys

import numpy as np

STEPS, BATCHES = 300, (16, 8)


def tell(*words):
    print(*words, flush=True)


def setting():
    "A student in float64 with lines, as arguments of a training: problem, optimizer, move, state, piles."
    import keras

    from distillnb import training
    from distillnb.losses import Metaparameters, distillation, smooth
    from distillnb.optimizers import adam

    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape)
    draw = lambda n: {"x": normal(n, 20), "y": rng.integers(0, 5, n, "int32"), "teacher_logits": normal(n, 5)}
    knobs, rule = smooth(tie="sum_to_one"), adam(0.01)
    keras.config.set_dtype_policy("float64")
    student = keras.Sequential([keras.Input((20,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)])
    move = training.lines(adam(0.01), 4, 8, 0.25, knobs.project)
    state = training.start(student.trainable_variables, knobs.encode(Metaparameters(0.5, 0.5, 4.0), "float64"), rule, move)
    return distillation(student, knobs, t_squared=True), rule, move, state, draw(64), draw(48)


def work(folder):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras

    from distillnb.runs import Store
    from distillnb.workers import train_together

    save = Store.save
    Store.interval = 0.0
    Store.save = lambda self, *words: (save(self, *words), tell("saved"))
    keras.utils.set_random_seed(strategy.cluster_resolver.task_id)  # each another one: the first one's student counts
    run = train_together(strategy, *setting(), STEPS, BATCHES, folder=None if folder == "-" else folder)
    tell(json.dumps({"lam": run.lam.tolist(), "inner": run.inner_loss.tolist(), "hypergradients": run.hypergradients.tolist()}))


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except ConnectionError as error:
        tell("ConnectionError", error)
        os._exit(3)  # whatever TensorFlow does at the end of a process
