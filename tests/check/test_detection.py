"""A mistake of 1 % in one element of 64 is found, every time; right ops are not accused."""

import re
from pathlib import Path

import pytest

from benchmarks.check_detection import OPS, caught, false_alarms
from manual_ops.testing.cases import CASES

TRIALS = 10


@pytest.mark.parametrize("op", OPS)
def test_detection(op: str) -> None:
    assert caught(op, "check", TRIALS) == TRIALS
    assert false_alarms(op, TRIALS) == 0


def test_every_op_is_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text()
    measured = set(re.findall(r"^\| (\w+)(?: \*)? \| \d+ \|", page, re.MULTILINE))
    assert set(OPS) == measured == {case.op for case in CASES}
