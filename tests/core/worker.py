"""A worker for test_distributed.py. Its word is a folder (of the first worker), or "-".

It says "saved" after each save. Its last line is JSON: the path of the metaparameters, and losses.
"""

import json
import os
import sys

import numpy as np

STEPS, BATCHES = 300, (16, 8)


def tell(*words):
    print(*words, flush=True)


def setting():
    "A student in float64 with lines, as the first arguments of a training."
    import keras

    from distillnb.bilevel_step import init_train_state
    from distillnb.losses import Metaparameters
    from distillnb.meta_updates import lines
    from distillnb.optimizers import adam
    from distillnb.parametrization import unconstrained
    from distillnb.problem import distillation

    rng = np.random.default_rng(0)

    def draw(n):
        x, y = rng.normal(size=(n, 20)), rng.integers(0, 5, n, "int32")
        return {"x": x, "y": y, "teacher_logits": rng.normal(size=(n, 5))}

    knobs, rule = unconstrained(tie="sum_to_one"), adam(0.01)
    keras.config.set_dtype_policy("float64")
    student = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(5)]
    )
    move = lines(adam(0.01), 4, 8, 0.25, knobs.project)
    start = knobs.unconstrain(Metaparameters(0.5, 0.5, 4.0), "float64")
    state = init_train_state(student.trainable_variables, start, rule, move)
    return distillation(student, knobs, t_squared=True), rule, move, state, draw(64), draw(48)


def work(folder):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras

    from distillnb.distributed import train_distributed
    from distillnb.store import Store

    save = Store.save
    Store.interval = 0.0

    def save_and_say(self, *words):
        save(self, *words)
        tell("saved")

    Store.save = save_and_say
    keras.utils.set_random_seed(
        strategy.cluster_resolver.task_id
    )  # each another one: the first one's student counts
    run = train_distributed(
        strategy, *setting(), STEPS, BATCHES, folder=None if folder == "-" else folder
    )
    path = {"lam": run.lam, "inner": run.inner_loss, "hypergradients": run.hypergradients}
    tell(json.dumps({name: values.tolist() for name, values in path.items()}))


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except ConnectionError as error:
        tell("ConnectionError", error)
        os._exit(3)  # whatever TensorFlow does at the end of a process
