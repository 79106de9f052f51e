"""A long training neither traces again nor grows."""

import os

import numpy as np
import psutil
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="module")
def setting():
    "A small convolutional student, its data, and how it moves."
    import keras

    from distillnb.parametrization import unconstrained
    from distillnb.problem import distillation

    layers = keras.layers
    parts = [layers.Conv2D(2, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPool2D()]
    parts += [layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *parts])
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(50, 6, 6, 1)).astype("float32"),
        "y": rng.integers(0, 3, 50).astype("int32"),
    }
    data["teacher_logits"] = rng.normal(size=(50, 3)).astype("float32")
    return model, distillation(model, unconstrained()), data


def resident():
    "MB that this process holds."
    return psutil.Process().memory_info().rss / 2**20


def go(setting, meta_update, optimizer, state, steps, **plan):
    from distillnb.training import train

    _, problem, data = setting
    return train(
        problem, optimizer, meta_update, state, data, data, steps, batch_sizes=(8, 8), **plan
    ).state


def begin(setting, meta_update, optimizer):
    from distillnb.bilevel_step import init_train_state

    model = setting[0]
    weights, kept = (
        [v.numpy() for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    return init_train_state(weights, np.zeros(3, "float32"), optimizer, meta_update, kept)


def test_ten_thousand_steps_do_not_grow(setting):
    from distillnb.meta_updates import gradient
    from distillnb.optimizers import sgd

    move, optimizer = gradient(sgd(0.01)), sgd(0.01)
    state = go(setting, move, optimizer, begin(setting, move, optimizer), 2000)
    before = resident()
    for _ in range(4):
        state = go(setting, move, optimizer, state, 2000)
    assert int(state.step) == 10_000
    assert resident() - before < 15, f"8,000 more steps took {resident() - before:.0f} MB"


PLANS = [{"steps_per_call": 1, "jit_compile": False}, {"steps_per_call": 7, "jit_compile": True}]


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_traced_again(setting, plan):
    "Other metaparameters, rates, phases, and a last call that is not full: traced once."
    from distillnb.hypergradient import one_step
    from distillnb.meta_updates import lines
    from distillnb.optimizers import sgd
    from distillnb.training import compiled_loop

    first = None
    for rate, outer, e1, e2, steps in (
        (0.01, 0.1, 3, 4, 9),
        (0.3, 0.02, 5, 50, 10),
        (0.1, 0.5, 4, 0, 3),
    ):
        move, optimizer = lines(sgd(outer), e1, e2), sgd(rate)
        state = begin(setting, move, optimizer)
        state = state._replace(lam=state.lam + rate)
        go(setting, move, optimizer, state, steps, **plan)
        parts = (
            setting[1],
            optimizer.update,
            move.needs_hypergradient,
            move.step,
            "shared",
            one_step,
        )
        loop = compiled_loop(*parts, plan["jit_compile"])
        first = first or loop
        assert loop is first and loop.experimental_get_tracing_count() == 1
