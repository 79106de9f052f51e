"""What a hypergradient costs: our estimators, other libraries, and how cost grows. Writes
results/benchmarks.json.

make bench or: python -m benchmarks.bench [--no-peers] [--only SECTION ...] [--out FILE]

Sections: whole, estimators, memory, weights, metaparameters, restarts, horizon, fit, workers,
peers. Each is written when it is done, and the others stay as they are in the file.

One core for every framework. Whole runs through the public loop; runs that are compared take
turns, and what is kept is the median of their ratios with its quartiles. Chapter 25 tells the
story from the record.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ONE = {
    name: "1" for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
}
os.environ.update(ONE | {"TF_CPP_MIN_LOG_LEVEL": "3"})

import keras
import numpy as np
import tensorflow as tf

from benchmarks import workers, workloads
from distillnb import training
from distillnb.bilevel import Bilevel
from distillnb.bilevel_step import init_train_state
from distillnb.distiller.model import HALF, MetaDistiller
from distillnb.horizons import unrolled
from distillnb.hypergradient import one_step
from distillnb.lab import benchmark
from distillnb.losses import cross_entropy
from distillnb.meta_updates import gradient
from distillnb.optimizers import adam, sgd
from distillnb.parametrization import unconstrained
from distillnb.problem import distillation

ROOT = Path(__file__).resolve().parent.parent
DENSE = (
    "one_step",
    "one_step_quarter",
    "nested_tape",
    "forward_product",
    "finite_difference",
    "one_sided_difference",
    "forward_mode",
    "unrolled_5",
    "unrolled_5_recompute",
    "neumann_5",
)
STEPS = {
    "linear": (2000, 7),
    "mlp": (100, 7),
    "conv": (10, 7),
    "resnet": (5, 3),
}  # of a run; rounds
SWEEP = 3  # rounds of the sweeps


def say(*words):
    print(*words, flush=True)


def shared(name):
    "A student of the benchmarks with the numbers that the peers have."
    data, given = workloads.workload(name), benchmark.case(name)
    return given._replace(weights=data.weights, train=data.train, val=data.val)


def estimators(name):
    "Rows of one student: every estimator, and runs with line phases, against the plain run."
    given, (steps, rounds) = shared(name), STEPS[name]
    plan = {"steps_per_call": steps} if name in ("linear", "mlp") else {}
    if name != "linear":
        steps = -(-steps // 5) * 5
    if name in (
        "linear",
        "mlp",
    ):  # the loop with reverse mode through states is TensorFlow's graph only
        chosen = [estimator for estimator in DENSE if estimator != "unrolled_5_recompute"]
    else:
        chosen = [
            estimator
            for estimator in DENSE
            if name == "conv"
            or estimator not in ("neumann_5", "unrolled_5", "unrolled_5_recompute")
        ]
    runners = {"plain": benchmark.runner("plain", given, steps, **plan)}
    for estimator in chosen:
        runners[estimator] = benchmark.runner(estimator, given, steps, **plan)
    e1 = max(3, steps // 5)
    for estimator in ("one_step", "one_step_quarter"):
        runners[f"{estimator}_lines"] = benchmark.runner(
            estimator, given, 5 * e1, lines=(e1, 4 * e1), **plan
        )
        runners[f"{estimator}_lines"].factor = steps / (5 * e1)
    measured = benchmark.ratios(runners, rounds)
    for estimator in measured:
        factor = getattr(runners[estimator], "factor", 1)
        row = {k: round(v * factor, 5) for k, v in measured[estimator].items()}
        say(f"  {name:8}{estimator:24}{row['ratio']:7.2f}  ({row['low']:.2f} to {row['high']:.2f})")
        yield {"workload": name, "estimator": estimator} | row


def our_hypergradient(given):
    from distillnb.hypergradient import init_student

    student = init_student(given.weights, sgd(workloads.RATE), given.non_trainable)
    return one_step(
        given.problem, sgd(workloads.RATE), student, given.lam, given.train, given.val
    ).hypergradient.numpy()


def peers(name, clients):
    """Rows of one student: seconds of a peer's whole bilevel step in ours, by turns; and how far
    its hypergradient is off.
    """
    given, (steps, rounds) = shared(name), STEPS[name]
    plan = {"steps_per_call": steps} if name in ("linear", "mlp") else {}
    ours, exact, taken = (
        benchmark.runner("one_step", given, steps, **plan),
        our_hypergradient(given),
        {},
    )
    if name != "linear":  # a step a call, as the peers are timed: no gain by fusing
        taken["ours, one step per call"] = benchmark.runner(
            "one_step", given, steps, jit_compile=False, steps_per_call=1
        )
    for client in clients:
        for peer in client.names:
            if "whole" not in peer:
                taken[f"{client.environment} {peer}"] = lambda c=client, p=peer: (
                    c.time(p, name, 0.3)[0] * steps
                )
    ratios = {label: [] for label in taken}
    for _ in range(rounds):
        base = ours()
        for label, run in taken.items():
            ratios[label].append(run() / base)
    checks = {
        f"{c.environment} {p}": c.check(p, name)
        for c in clients
        for p in c.names
        if f"{c.environment} {p}" in taken and p != "plain"
    }
    for label, values in ratios.items():
        low, middle, high = np.percentile(values, [25, 50, 75]).round(3).tolist()
        row = {"workload": name, "peer": label, "ratio": middle, "low": low, "high": high}
        if not label.endswith("plain"):
            off = np.linalg.norm(np.subtract(checks.get(label, exact), exact)) / np.linalg.norm(
                exact
            )
            row["hypergradient_error"] = None if np.isnan(off) else float(f"{off:.2g}")
        say(
            f"  {name:8}{label:32}{middle:7.2f}  ({low:.2f} to {high:.2f})   off by "
            f"{row.get('hypergradient_error', '-')}"
        )
        yield row


def whole(clients):
    """The synthetic experiment: ten restarts of 2,000 bilevel steps through `train`, and the
    peers' ways, by turns.
    """
    given, steps = shared("linear"), workloads.STEPS
    runs = {
        "ours": benchmark.runner(
            "one_step", given, steps, replicas=workloads.RESTARTS, steps_per_call=steps
        )
    }
    for client in clients:
        for peer in client.names:
            if "whole" in peer:
                runs[f"{client.environment} {peer}"] = lambda c=client, p=peer: c.time(
                    p, "linear", 0.5
                )[0]
    seconds = {label: [] for label in runs}
    for _ in range(9):
        for label, run in runs.items():
            seconds[label].append(run())
    for label, values in seconds.items():
        low, middle, high = np.percentile(values, [25, 50, 75]).round(4).tolist()
        ratio = float(np.median(np.divide(values, seconds["ours"])).round(3))
        say(f"  {label:24}{middle:9.3f} s  ({low:.3f} to {high:.3f})   {ratio:.2f} of ours")
        yield {"peer": label, "seconds": middle, "low": low, "high": high, "ratio": ratio}


def dense(width, features=64):
    return keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(10)]
    )


def by_weights():
    "one_step against plain for dense nets of 1e3 to 1e7 weights."
    for features, width in ((20, 32), (64, 128), (256, 384), (1024, 1000), (2048, 4900)):
        model = dense(width, features)
        given = benchmark.case("mlp", model)
        steps = max(2, int(2e7 / model.count_params() / 4))
        steps = min(steps, 300)
        runs = {
            r: benchmark.runner(r, given, steps, steps_per_call=steps)
            for r in ("plain", "one_step", "forward_mode")
        }
        measured = benchmark.ratios(runs, SWEEP)
        for estimator in ("one_step", "forward_mode"):
            yield {"weights": model.count_params(), "estimator": estimator} | measured[estimator]


def by_metaparameters():
    """one_step for 3 to 1e5 metaparameters: a weight for each example of a data set; forward mode
    up to 30.
    """
    model, random = dense(64), np.random.default_rng(0)
    for count in (3, 10, 30, 1000, 100_000):
        given = benchmark.case("mlp", model)

        def inner(weights, lam, batch, kept=()):
            z, _ = model.stateless_call(weights, [], batch["x"])
            return tf.reduce_mean(
                tf.sigmoid(tf.gather(lam, batch["example"])) * cross_entropy(batch["y"], z)
            ), kept

        train = given.train | {"example": random.integers(0, count, len(given.train["y"]))}
        given = given._replace(
            problem=Bilevel(inner, given.problem.outer), lam=np.zeros(count, "float32"), train=train
        )
        names = ("plain", "one_step", "forward_mode") if count <= 30 else ("plain", "one_step")
        measured = benchmark.ratios(
            {r: benchmark.runner(r, given, 100, jit_compile=False) for r in names}, SWEEP
        )
        for estimator in names[1:]:
            yield {"metaparameters": count, "estimator": estimator} | measured[estimator]


def by_restarts():
    "Seconds of R restarts together, in seconds of one, by stacking and one after another."
    for name, counts in (("linear", (1, 3, 10, 100)), ("mlp", (1, 2, 4)), ("conv", (1, 2, 4))):
        given, steps = shared(name), {"linear": 2000, "mlp": 50, "conv": 5}[name]
        for count in counts:
            runs = {
                "plain": benchmark.runner(
                    "one_step", given, steps, steps_per_call=steps if name != "conv" else 1
                )
            }
            plan = {"steps_per_call": steps} if name != "conv" else {}
            runs["chosen"] = benchmark.runner("one_step", given, steps, replicas=count, **plan)
            if name != "conv" and count > 1:
                runs["one after another"] = benchmark.runner(
                    "one_step", given, steps, replicas=count, max_stacked=1, **plan
                )
            measured = benchmark.ratios(runs, SWEEP)
            for label in list(runs)[1:]:
                yield {"workload": name, "restarts": count, "way": label} | measured[label]


def by_horizon():
    """Plain steps for each student step, by K, of reverse mode with and without recomputation;
    conv net, plain calls.
    """
    given, steps = shared("conv"), 20
    for K in (1, 2, 5, 10, 20):  # each K is compiled anew; the plain tape is left out at 20
        runs = {"plain": benchmark.runner("plain", given, steps)}
        for label, recompute in (("unrolled", False), ("recomputed", True)):
            if recompute or K <= 10:
                runs[label] = benchmark.runner(
                    (unrolled(K, recompute=recompute), 1.0), given, steps
                )
        measured = benchmark.ratios(runs, SWEEP)
        for label in list(runs)[1:]:
            yield {"K": K, "estimator": label} | measured[label]


def timed(go):
    "A function that runs and returns the seconds; it has run once, so that all is compiled."
    go()

    def _seconds():
        began = time.perf_counter()
        go()
        return time.perf_counter() - began

    return _seconds


def fitted():
    """Seconds of `MetaDistiller.fit` in seconds of the loop of `train`: the same data, batches,
    order and step.
    """
    for name, steps in (("mlp", 200), ("conv", 60)):
        yield from fitted_student(name, steps)


def fitted_student(name, steps, size=128):
    "The rows of one student."
    rng, model = np.random.default_rng(0), benchmark.student(name)

    def normal(*shape):
        return rng.normal(size=(10 * size, *shape)).astype("float32")

    def draw():
        return {"x": normal(*model.input_shape[1:]), "y": rng.integers(0, 10, 10 * size)}

    lesson, validation = draw() | {"teacher_logits": normal(10)}, draw()
    knobs, rule = unconstrained(tie="sum_to_one"), sgd(0.05)
    move, problem = (
        gradient(adam(0.01), knobs.project),
        distillation(model, knobs, t_squared=True),
    )
    state = init_train_state(
        [v.numpy() for v in model.trainable_variables], knobs.unconstrain(HALF), rule, move
    )

    def loop(**plan):
        return training.train(
            problem, rule, move, state, lesson, validation, steps, (size, size), **plan
        )

    distiller = MetaDistiller(None, model)
    distiller.compile(keras.optimizers.SGD(0.05), metrics=["accuracy"])
    two_epochs = dict(batch_size=size, steps_per_epoch=steps // 2, epochs=2, verbose=0)

    def fit():
        return distiller.fit(lesson, meta_validation=validation, **two_epochs)

    one = dict(jit_compile=False, steps_per_call=1)
    runs = {"plain": timed(lambda: loop(**one)), "fit": timed(fit)}
    if name == "mlp":
        runs["loop, as chosen"] = timed(loop)
    measured = benchmark.ratios(runs, 5)
    for label in list(runs)[1:]:
        say(f"  {name:8}{label:20}{measured[label]['ratio']:8.3f} of the loop, one step a call")
        yield {"workload": name, "way": label} | measured[label]


def by_workers():
    "Messages and steps of one to four processes on this machine, by turns; medians of the rounds."
    rounds = {count: [] for count in (1, 2, 3, 4)}
    for turn in range(3):
        for count in list(rounds)[:: -1 if turn % 2 else 1]:
            rounds[count].append(workers.cluster(count))
    for count, runs in rounds.items():
        row = {
            "workers": count,
            "messages": middle(runs, "messages"),
            "steps": middle(runs, "steps"),
        }
        for step in row["steps"]:
            plain, bilevel = 1e3 * step["plain"], 1e3 * step["bilevel"]
            say(
                f"  {count} workers, {step['workload']:6} plain {plain:.1f} ms, bilevel "
                f"{bilevel:.1f} ms"
            )
        yield row


def middle(runs, kind):
    "The rows of several runs in one, each number their median."

    def both(values):
        return round(float(np.median(values)), 6) if isinstance(values[0], float) else values[0]

    return [
        {key: both([row[key] for row in rows]) for key in rows[0]}
        for rows in zip(*(run[kind] for run in runs), strict=True)
    ]


def memory():
    """MB that a estimator adds to a process that has everything else, at the peak, each in a
    process of its own.
    """
    for name in ("conv", "resnet"):
        for estimator in (
            "plain",
            "one_step",
            "nested_tape",
            "forward_product",
            "finite_difference",
            "forward_mode",
            "recompute 5",
            "recompute 20",
            "recompute 200",
            "unrolled 5",
            "unrolled 20",
        ):
            if name == "resnet" and (
                "200" in estimator or "unrolled" in estimator or "20" in estimator
            ):
                continue
            command = [sys.executable, "-m", "benchmarks.memory", name, estimator]
            found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if found.returncode:
                say(f"  {name} {estimator}: failed")
                continue
            row = {"workload": name, "estimator": estimator} | json.loads(
                found.stdout.splitlines()[-1]
            )
            say(
                f"  {name:8}{estimator:20}{row['added_mb']:8.0f} MB added, {row['peak_mb']:.0f} "
                "MB in all"
            )
            yield row


def environment():
    packages = ("tensorflow", "keras", "numpy")
    return {
        "python": platform.python_version(),
        "threads": 1,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {p: version(p) for p in packages},
        "command": "make bench",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-peers", action="store_true", help="our own rows only")
    parser.add_argument(
        "--only", nargs="+", metavar="SECTION", help="these sections of the record only"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks.json")
    arguments = parser.parse_args()

    def wanted(title):
        return not arguments.only or title in arguments.only

    clients = []
    if not arguments.no_peers and (wanted("whole") or wanted("peers")):
        from benchmarks.peers.client import start

        clients = [client for client in map(start, ("torch", "jax")) if client.names]
    sections = {
        "whole": lambda: whole(clients),
        "estimators": lambda: every(estimators),
        "memory": memory,
        "weights": by_weights,
        "metaparameters": by_metaparameters,
        "restarts": by_restarts,
        "horizon": by_horizon,
        "fit": fitted,
        "workers": by_workers,
        "peers": lambda: every(lambda name: peers(name, clients)) if clients else (),
    }
    for title, rows in sections.items():
        if wanted(title):
            say(title)
            write(arguments.out, {title: list(rows()), "environment": environment()})
    if wanted("peers"):

        def gather(kind):
            return {str(k): v for client in clients for k, v in getattr(client, kind).items()}

        write(
            arguments.out,
            {f"peers_{kind}": gather(kind) for kind in ("skipped", "notes", "errors")},
        )


def every(rows):
    return (row for name in benchmark.STUDENTS for row in rows(name))


def write(path, new):
    "Put sections into the record and leave the others."
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(record | new, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
