"""What people bring: every wrong call is answered clearly, or does what its caller meant.

A clear answer is an error that our own code raises, of a plain kind (ValueError and the like). Where
there is nothing to complain of, the call is in `RIGHT`, with the reason. Where somebody else's code
complains, and well enough, it is in `FOREIGN`, with the reason. `make test` makes every fifth of the
slow calls, `make soak` all of them.
"""

import os
import signal
import traceback
import warnings

import fits  # noqa: F401
import functions  # noqa: F401
import loops  # noqa: F401
import pytest
import registry
import stores  # noqa: F401
from answers import FOREIGN, RIGHT

PLAIN = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ModuleNotFoundError)
SLOW = {"train", "workers", "fit data", "fit options", "compile", "init", "Resume"}
WHOLE = bool(os.environ.get("SOAK"))


class TooLong(BaseException):
    """A call hangs."""


def stop(*_):
    raise TooLong


def answer(call):
    "How a call is answered: a verdict, and what was said."
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(call.limit)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = call.call()
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        return ("warned" if said else "silent"), (found, said)
    except TooLong:
        return "hangs", f"more than {call.limit} s"
    except PLAIN as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        plain = type(error).__module__ == "builtins" and "/distillnb/" in last
        return ("clear" if plain else "foreign"), f"{type(error).__name__}: {error}"
    except Exception as error:  # of TensorFlow's or Keras's own kinds
        return "foreign", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def chosen():
    slow = 0
    for call in registry.CALLS:
        slow += call.group in SLOW
        if WHOLE or call.group not in SLOW or slow % 5 == 0:
            yield pytest.param(call, id=f"{call.group}: {call.name}")


@pytest.mark.parametrize("call", chosen())
def test_answer(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    verdict, said = answer(call)
    key = f"{call.group}: {call.name}"
    if key in RIGHT:
        _, check = RIGHT[key]
        assert verdict in ("silent", "warned"), said
        assert check is None or check(said[0]), said
    elif key in FOREIGN:
        assert verdict in ("foreign", "clear"), said
    else:
        assert verdict == "clear", f"{verdict}: {str(said)[:500]}"


def test_reasons_are_of_calls_that_there_are():
    known = {f"{call.group}: {call.name}" for call in registry.CALLS}
    assert len(known) == len(registry.CALLS)
    assert not (set(RIGHT) | set(FOREIGN)) - known
