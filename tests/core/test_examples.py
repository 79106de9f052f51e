"""The example in the docstring of each name on the face runs and says what it says."""

import doctest
import inspect
import sys

import numpy as np
import pytest

import distillnb


@pytest.fixture
def given(tmp_path):
    "Models and arrays, under the names that the examples use."
    import keras

    keras.utils.set_random_seed(0)
    teacher, student = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(width), keras.layers.Dense(3)])
        for width in (8, 2)
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), rng.integers(0, 3, 60)
    held_out = rng.normal(size=(30, 4)).astype("float32"), rng.integers(0, 3, 30)
    distiller = distillnb.MetaDistiller(teacher, student)
    distiller.compile("sgd")
    folder = tmp_path / "fit"
    return dict(
        teacher=teacher, student=student, x=x, y=y, held_out=held_out, folder=folder,
        distiller=distiller,
    )  # fmt: skip


@pytest.mark.parametrize("name", distillnb.__all__)
def test_example(name, given):
    shown = getattr(distillnb, name)
    module = vars(sys.modules[shown.__module__])
    (test,) = doctest.DocTestFinder(recurse=False).find(shown, name, globs={**module, **given})
    assert test.examples, f"help(distillnb.{name}) has no example"
    assert not doctest.DocTestRunner().run(test).failed


@pytest.mark.parametrize("name", distillnb.__all__)
def test_help_is_complete(name):
    shown = getattr(distillnb, name)
    text = inspect.getdoc(shown)
    assert "Args:" in text or "Attributes:" in text
    if not inspect.isclass(shown):
        assert "Returns:" in text and "Raises:" in text, f"help(distillnb.{name})"
