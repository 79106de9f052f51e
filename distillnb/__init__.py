"""Learn how much to listen to the teacher: distillation whose weights and temperature are learned.

The eleven names below are loaded when they are first asked for; `import distillnb` alone loads no TensorFlow.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "MetaDistiller": "distiller.model",
    "Resume": "distiller.callbacks",
    "LearnedSchedule": "distiller.callbacks",
    "TeacherLogits": "distiller.teachers",
    "Metaparameters": "losses",
    "learnable": "learnable_losses",
    "box": "parametrization",
    "unconstrained": "parametrization",
    "Bilevel": "bilevel",
    "distillation": "problem",
    "train": "training",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'distillnb' has no attribute {name!r}")
    load_tensorflow()
    globals()[name] = getattr(import_module(f"distillnb.{_HOMES[name]}"), name)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})


def load_tensorflow():
    """Import TensorFlow and Keras without the notes that they write on standard error as they load.

    TensorFlow writes them before it looks at TF_CPP_MIN_LOG_LEVEL, so they are caught on their way to
    the file descriptor. Whatever is no note (an error, a warning of Python's) is passed on.
    """
    import os
    import re
    import sys
    import tempfile

    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    note = re.compile(r"[IW]\d{4} |WARNING: All log messages before absl|To enable the following instructions")
    sys.stderr.flush()
    descriptor = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow  # noqa: F401
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not note.match(line))
