"""Tests that cannot fail prove nothing: slips of the pen, each of which must break its notebook.

A mutant replaces one piece of an exported cell in a copy of the notebook and runs the copy, which
must end with an AssertionError. `pytest tests/test_mutants.py -v` lists them.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from execute import run_notebook
from notebooks import NBS, ROOT, executed, flags, source


class Mutant(NamedTuple):
    slip: str  # what goes wrong
    notebook: str  # where
    old: str  # text that occurs once in the exported cells
    new: str


MUTANTS = [
    Mutant(
        "teacher and student swapped",
        "1_problem/14_losses",
        "tf.reduce_logsumexp(z, -1) - tf.reduce_sum(tf.nn.softmax(t) * z, -1)",
        "tf.reduce_logsumexp(t, -1) - tf.reduce_sum(tf.nn.softmax(z) * t, -1)",
    ),
    Mutant(
        "T^2 where it should not be",
        "1_problem/14_losses",
        "T**2 * softened if t_squared else softened",
        "T**2 * softened",
    ),
    Mutant(
        "KL turned round",
        "1_problem/14_losses",
        "tf.exp(log_p) * (log_p - log_q)",
        "tf.exp(log_q) * (log_q - log_p)",
    ),
    Mutant(
        "the hypergradient's sign, inside out",
        "2_hypergradient/22_hypergradient",
        "lam, output_gradients=[*direction, *kept])",
        "lam, output_gradients=[*[-d for d in direction], *kept])",
    ),
    Mutant(
        "the hypergradient's sign, by differences",
        "2_hypergradient/22_hypergradient",
        "divide_no_nan(a - b,",
        "divide_no_nan(b - a,",
    ),
    Mutant(
        "gamma dropped, inside out",
        "2_hypergradient/22_hypergradient",
        "direction, moved = reaction(optimizer, *before, v, lam)",
        "direction, moved = [-d for d in v], reaction(optimizer, *before, v, lam)[1]",
    ),
    Mutant(
        "half a difference",
        "2_hypergradient/22_hypergradient",
        "tf.cast(sides * nudge, a.dtype)",
        "tf.cast(nudge, a.dtype)",
    ),
    Mutant(
        "a batch of the way back off by one",
        "2_hypergradient/23_horizons",
        "lam, _batch_at(batches, k)\n            )",
        "lam, _batch_at(batches, K - 1 - k)\n            )",
    ),
    Mutant(
        "the tangents lose the direct term",
        "2_hypergradient/23_horizons",
        "[*(t[p] for t in student.tangents), along]",
        "[*(t[p] for t in student.tangents), tf.zeros_like(along)]",
    ),
    Mutant(
        "Adam's step counted from zero",
        "2_hypergradient/21_optimizers",
        "t = tf.cast(step, a.dtype) + 1\n    corrected = rate * tf.sqrt(1 - b**t)",
        "t = tf.cast(step, a.dtype) + 2\n    corrected = rate * tf.sqrt(1 - b**t)",
    ),
    Mutant(
        "the abscissa off by one, in the fit",
        "3_training/31_extrapolation",
        "values.mean(0) - slope * (n - 1) / 2",
        "values.mean(0) - slope * (n + 1) / 2",
    ),
    Mutant(
        "the abscissa off by one, along the line",
        "3_training/31_extrapolation",
        "predict(line, z)) for z in range(e1, e1 + walk)",
        "predict(line, z + 1)) for z in range(e1, e1 + walk)",
    ),
    Mutant(
        "the abscissa off by one, in the compiled loop",
        "3_training/32_meta_updates",
        "line = _line_at(memory, z)",
        "line = _line_at(memory, z + 1)",
    ),
    Mutant(
        "a line of the journal is believed unchecked",
        "reference/store",
        "_parse(body) if sound else None",
        '_parse(body) if body.endswith(b"}") else None',
    ),
    Mutant(
        "only the newest state is kept",
        "reference/store",
        "for old in older[1:]:",
        "for old in older:",
    ),
    Mutant(
        "labels below zero are let in",
        "reference/checks",
        "if low < 0 or high >=",
        "if high >=",
    ),
    Mutant(
        "one class too many is let in",
        "reference/checks",
        "high >= (2**31",
        "high > (2**31",
    ),
    Mutant(
        "arrays of several lengths are let in",
        "reference/checks",
        "if len(lengths) != 1 or not",
        "if not",
    ),
    Mutant(
        "negative weights are let in",
        "reference/checks",
        "if np.any(w < 0) or not np.any(w > 0):",
        "if not np.any(w > 0):",
    ),
    Mutant(
        "infinite numbers are let in",
        "reference/checks",
        "if number and math.isfinite(value) and",
        "if number and",
    ),
    Mutant(
        "a copy that differs by rounding is no copy",
        "reference/batches",
        ".mean(1) <= 2e-5",
        ".mean(1) <= 0",
    ),
    Mutant(
        "yes and no change places",
        "reference/problem",
        "tf.stack([tf.zeros_like(logits), logits], -1)",
        "tf.stack([logits, tf.zeros_like(logits)], -1)",
    ),
    Mutant(
        "labels of yes and no change places",
        "reference/problem",
        "tf.stack([1 - yes, yes], -1)",
        "tf.stack([yes, 1 - yes], -1)",
    ),
    Mutant(
        "a table about other inputs is believed",
        "reference/teachers",
        "    if others:\n",
        "    if others > len(ids):\n",
    ),
    Mutant(
        "a diverged replica's memory moves on",
        "3_training/33_bilevel_step",
        "    student, lam, memory = tf.nest.map_structure(",
        "    student, lam, _ = tf.nest.map_structure(",
    ),
    Mutant(
        "the right class among the others",
        "4_keras/42_your_own_loss",
        "tf.where(right, tf.constant(-np.inf, v.dtype), v)",
        "v",
    ),
    Mutant(
        "a share above one is let in",
        "4_keras/42_your_own_loss",
        "np.all((value >= 0) & (value <= 1))",
        "np.all(value >= 0)",
    ),
]


def write(mutant, folder):
    "A small project in which one notebook has the slip; the modules beside it are sound."
    for name in ("distillnb", "results"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    notebook = json.loads((NBS / f"{mutant.notebook}.ipynb").read_text(encoding="utf-8"))
    hits = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "export" in flags(cell):
            hits += source(cell).count(mutant.old)
            cell["source"] = source(cell).replace(mutant.old, mutant.new)
    assert hits == 1, (
        f"{mutant.old!r} occurs {hits} times in {mutant.notebook}: mend the mutant in {__name__}.py"
    )
    path = folder / "nbs" / f"{mutant.notebook}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    "The mutants that were asked for, run two at a time: {slip: future}."
    items = [item for item in request.session.items if item.path == request.path]
    chosen = [item.callspec.params["mutant"] for item in items if "mutant" in item.callspec.params]
    with ThreadPoolExecutor(2) as pool:

        def start(mutant):
            return run_notebook(write(mutant, tmp_path_factory.mktemp("mutant")))

        yield {mutant.slip: pool.submit(start, mutant) for mutant in chosen}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.slip)
def test_mutant_is_caught(mutant, outcomes):
    executed(NBS / f"{mutant.notebook}.ipynb")  # without the slip it passes
    passed, said, *_ = outcomes[mutant.slip].result()
    assert not passed, f"{mutant.notebook} does not notice: {mutant.slip}. Add an assert that does"
    error = re.search(r"^(\w+) in \S+\.ipynb:$", said, re.M)
    assert error and error[1] == "AssertionError", f"an assert must catch it, not\n{said}"
