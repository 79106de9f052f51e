"""The calls of this folder, as they are declared: case(group, name, call)."""

from typing import NamedTuple

CALLS = []


class Call(NamedTuple):
    """A call that somebody might make.

    Attributes:
        group: What is called.
        name: What is wrong about it.
        call: Makes it.
        limit: Seconds after which it counts as hanging.
    """

    group: str
    name: str
    call: object
    limit: int


def case(group, name, call, limit=60):
    """Declare a call."""
    CALLS.append(Call(group, name, call, limit))
    return call
