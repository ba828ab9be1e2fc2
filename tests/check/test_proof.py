"""The checker on trial: every wrong op is caught where it has to be, no right one is accused."""

from collections.abc import Sequence

import pytest

from manual_ops.check import CHECKS, Report, check
from tests.check.right_ops import RIGHT_OPS, RightOp
from tests.check.wrong_ops import WRONG_OPS, WrongOp

COMPILED = tuple(name for name in CHECKS if name.startswith("compile"))  # seconds each


def failures(report: Report) -> set[str]:
    return {row.check for row in report.failures}


def without_compiling(but_for: str = "") -> Sequence[str]:
    return [name for name in COMPILED if name != but_for]


@pytest.mark.parametrize("wrong", WRONG_OPS, ids=lambda wrong: wrong.fn.__name__)
def test_wrong_op_is_caught(wrong: WrongOp) -> None:
    report = check(
        wrong.fn, *wrong.inputs, reference=wrong.reference, skip=without_compiling(wrong.caught_by)
    )
    assert failures(report) == {wrong.caught_by, *wrong.also}, f"\n{report}"
    assert all(row.cause for row in report.failures), f"\n{report}"


@pytest.mark.parametrize("name", RIGHT_OPS)
def test_right_op_is_not_accused(name: str) -> None:
    right: RightOp = RIGHT_OPS[name]
    report = check(right.fn, *right.inputs, keywords=right.keywords, skip=without_compiling())
    assert failures(report) == set(right.cannot), f"\n{report}"
