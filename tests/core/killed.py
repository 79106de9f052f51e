"""Trainings for test_store.py to kill.

A line on standard input names a folder; a child of this process trains in it. The next line says
that nobody will kill it any more, and its status is printed.

TensorFlow takes seconds to import, so it is imported once, and a child is forked for each line. No
operation has run and no thread has started by then (that is checked), so the child begins as a
fresh process would.
"""

import hashlib
import os
import sys

from distillnb.store import Store, reproducible

UNITS, SAVES, STEPS = (
    ("seed-0", "seed-1"),
    30,
    20,
)  # two trainings of 600 steps, a save after each 20


def print_words(*words):
    print(*words, flush=True)


def digest(arrays):
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def setting():
    "A student with Dropout and BatchNorm on the digits; its teacher is a table of noise."
    import keras
    import numpy as np

    from distillnb.lab.data import digits
    from distillnb.parametrization import unconstrained
    from distillnb.problem import distillation

    keras.utils.set_random_seed(0)
    parts = [
        keras.layers.Flatten(),
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), *parts, keras.layers.Dropout(0.2, seed=0), keras.layers.Dense(10)]
    )
    piles = digits(train=200, validation=100)
    train, validation = ({"x": pile.x, "y": pile.y} for pile in (piles.train, piles.validation))
    train["teacher_logits"] = np.random.default_rng(0).normal(size=(200, 10)).astype("float32")
    return model, distillation(model, unconstrained()), train, validation


def work(folder, environment):
    "All units, from wherever an earlier process was killed."
    import tensorflow as tf

    from distillnb.bilevel_step import init_train_state
    from distillnb.meta_updates import gradient
    from distillnb.optimizers import adam, sgd
    from distillnb.training import train

    options = dict(
        resume=True, environment=environment, log=lambda text: print_words("logged", text)
    )
    with Store(folder, {"steps": SAVES * STEPS}, **options) as store:
        print_words("opened")
        model, problem, train_data, val_data = setting()
        optimizer, move = adam(0.01), gradient(sgd(0.05))
        weights, kept = (
            [v.numpy() for v in vs]
            for vs in (model.trainable_variables, model.non_trainable_variables)
        )
        options = dict(batch_sizes=(16, 16), jit_compile=False, steps_per_call=STEPS)
        for seed, unit in enumerate(UNITS):
            if unit in store:
                continue
            state = init_train_state(
                [w * 0.1 * (seed + 1) for w in weights], [0.0, 0.0, 0.0], optimizer, move, kept
            )
            arrays, notes = store.load(unit) or (None, {"saves": 0})
            if arrays:
                state = tf.nest.pack_sequence_as(state, [tf.constant(a) for a in arrays])
            for n in range(notes["saves"], SAVES):
                state = train(
                    problem,
                    optimizer,
                    move,
                    state,
                    train_data,
                    val_data,
                    STEPS,
                    seeds=seed,
                    **options,
                ).state
                store.save(unit, tf.nest.flatten(state), {"saves": n + 1})
                print_words("saved", unit, n + 1)
            final = [a.numpy() for a in tf.nest.flatten(state)]
            store.finish(
                unit,
                {
                    "lam": state.lam.numpy().tolist(),
                    "state": digest(final),
                    "steps": int(state.step),
                },
            )
        print_words("done")


def main():
    environment = reproducible(threads=1)
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", OPENBLAS_NUM_THREADS="1")
    import keras  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorflow  # noqa: F401

    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    print_words("ready", threads)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                work(line.strip(), environment)
                os._exit(0)
            finally:
                print_words("failed")
                os._exit(1)
        print_words("child", pid)
        sys.stdin.readline()
        print_words("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
