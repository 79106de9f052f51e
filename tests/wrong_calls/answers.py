"""Calls that are right as they are, and calls that others answer well enough; with the reason."""

RIGHT = {}
FOREIGN = {}
