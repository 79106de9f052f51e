"""How much more do ten restarts cost than one? The synthetic task, a hypergradient at every step, through the public loop.

    python benchmarks/replicas.py

One and ten replicas take turns in one process. Printed are the medians of seven rounds and their ratio, in graph mode
and with XLA.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from distillnb.experiments import _initial_weights, _problem, synthetic_task
from distillnb.losses import Metaparameters
from distillnb.training import compile_loop, gradient, start, train

STEPS, ROUNDS = 2000, 7


def runner(task, replicas, jit_compile):
    "A function that trains the first replicas of the task and returns the seconds."
    move = gradient(task.outer, task.coordinates.project)
    loop = compile_loop(_problem(task.student, task.coordinates, task.t_squared)[0], move, jit_compile=jit_compile)
    weights, _ = _initial_weights(task.student, tuple(task.seeds[:replicas]))
    lam = [task.coordinates.encode(Metaparameters(*begin)).numpy() for begin in task.starts[:replicas]]
    piles = [{name: array[:replicas] for name, array in pile.items()} for pile in task.piles("gradient")]
    state = start(weights, lam, move)

    def run():
        began = time.perf_counter()
        train(loop, state, *piles, STEPS, task.rate, steps_per_call=STEPS)
        return time.perf_counter() - began

    run()
    return run


def main():
    task = synthetic_task("clean", "laptop", list(range(10)))
    for jit_compile in (False, True):
        one, ten = (runner(task, replicas, jit_compile) for replicas in (1, 10))
        seconds = [(one(), ten()) for _ in range(ROUNDS)]
        alone, together = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratios = sorted(b / a for a, b in seconds)
        print(f"{'XLA' if jit_compile else 'graph':6}one {alone:.3f} s   ten {together:.3f} s   "
              f"ratio {together / alone:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), {STEPS} steps")


if __name__ == "__main__":
    main()
