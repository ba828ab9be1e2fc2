"""Sizes given as one number for all spatial dims or as one for each."""

from torch import SymInt

IntOrTuple = int | tuple[int, ...] | list[int]


def as_tuple(value: IntOrTuple, dims: int) -> tuple[int, ...]:
    """Return ``value`` with one entry for each of ``dims`` dims."""
    values = (value,) if isinstance(value, (int, SymInt)) else tuple(value)
    return values * dims if len(values) == 1 else values
