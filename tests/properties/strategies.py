"""Hypothesis' strategies, each made once: to make one takes longer than to draw from it."""

import functools
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

booleans, integers, lists, sets = (
    functools.lru_cache(maxsize=None, typed=True)(make)
    for make in (st.booleans, st.integers, st.lists, st.sets)
)

_samplers: dict[str, st.SearchStrategy[Any]] = {}


def sampled_from(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """The same for the same values, told apart as they print: 1 is not True."""
    key = repr(values)
    if key not in _samplers:
        _samplers[key] = st.sampled_from(values)
    return _samplers[key]
