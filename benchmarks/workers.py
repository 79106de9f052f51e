"""What workers on one machine pay for their messages. `benchmarks.bench --only workers` starts
these processes.

python -m benchmarks.workers INDEX PORT [PORT ...] one worker of so many; the first prints its
seconds as JSON
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOATS = (1, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 15
BATCH = 128  # of all workers together


def main(index, ports):
    "One worker. TensorFlow is imported when its place in the cluster is known."
    ports = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": ports}, "task": {"type": "worker", "index": index}}
    )
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    count = len(ports)
    found = {
        "workers": count,
        "messages": list(messages(strategy)) if count > 1 else [],
        "steps": list(steps(strategy)) if BATCH % count == 0 else [],
    }
    if index == 0:
        print(json.dumps(found), flush=True)


def median(call):
    "Seconds of a call that has been made twice before."
    call(), call()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def messages(strategy):
    "An average of so many floats, and the same call without the message."
    import tensorflow as tf

    from distillnb.distributed import all_reduce_mean

    def seconds_of(function, vector):
        call = tf.function(lambda v: strategy.run(function, (v,)), autograph=False)
        return median(lambda: call(vector)[:1].numpy())

    for n in FLOATS:
        vector = tf.ones([n])
        seconds = seconds_of(all_reduce_mean, vector) - seconds_of(lambda v: v * 2.0, vector)
        yield {"floats": n, "seconds": seconds}


def steps(strategy):
    "Plain and bilevel steps of a batch that all workers share."
    import tensorflow as tf

    from distillnb.bilevel_step import init_train_state
    from distillnb.distributed import distributed_steps
    from distillnb.lab import benchmark
    from distillnb.meta_updates import gradient
    from distillnb.optimizers import sgd

    for name, model in (("mlp", None), ("wide", wide())):
        given, rule, move = benchmark.case("mlp", model, BATCH), sgd(0.05), gradient(sgd(0.01))
        state = init_train_state(given.weights, given.lam, rule, move)
        row = {"workload": name, "weights": sum(w.size for w in given.weights)}
        data = [tf.nest.map_structure(tf.constant, part) for part in (given.train, given.val)]
        turns, rows = (
            distributed_steps(strategy, given.problem, rule, move, data),
            tf.range(len(given.train["y"])),
        )
        for wanted, kind in ((False, "plain"), (True, "bilevel")):
            row[kind] = median(
                lambda turn=turns[wanted], state=state, rows=rows: turn(state, rows, rows)[
                    1
                ].inner_loss.numpy()
            )
        yield row


def wide():
    "A student of about a million weights."
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(1024, "relu"),
            layers.Dense(256, "relu"),
            layers.Dense(10),
        ]
    )


def cluster(count):
    "What the first of so many processes on this machine measures."
    holds = [socket.socket() for _ in range(count)]
    for hold in holds:
        hold.bind(("127.0.0.1", 0))
    ports = [str(hold.getsockname()[1]) for hold in holds]
    for hold in holds:
        hold.close()
    command = [sys.executable, "-m", "benchmarks.workers"]
    crew = [
        subprocess.Popen(
            [*command, str(i), *ports],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"no_proxy": "127.0.0.1"},
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in crew]
    return json.loads(outputs[0].splitlines()[-1])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
