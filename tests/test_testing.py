"""``manual_ops.testing``: the assertion for other projects' tests."""

import pytest
import torch
from torch import Tensor

from manual_ops.check import CheckError
from manual_ops.testing import assert_op_ok


class Plain(torch.autograd.Function):
    """Right, but without forward mode."""

    scale = 2.0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: object, inputs: tuple, output: Tensor) -> None: ...

    @classmethod
    def backward(cls, ctx: object, grad: Tensor) -> Tensor:
        return grad * cls.scale


class Wrong(Plain):
    scale = 2.02


X = torch.randn(3, 4)
CHECKS = ["gradient", "double backward", "forward mode"]


def test_a_right_op() -> None:
    report = assert_op_ok(Plain, X, only=CHECKS, require=["gradient", "double backward"])
    assert [row.check for row in report.rows] == CHECKS
    assert report["forward mode"][0].verdict == "n/a"


def test_a_wrong_op() -> None:
    with pytest.raises(CheckError, match="FAIL gradient: x: "):
        assert_op_ok(Wrong, X, only=CHECKS)
    assert assert_op_ok(Wrong, X, only=CHECKS, skip=["gradient"])


def test_a_required_check_has_to_apply() -> None:
    with pytest.raises(CheckError, match="required but not applicable: forward mode\n"):
        assert_op_ok(Plain, X, only=CHECKS, require=["forward mode"])


def test_a_required_check_has_to_run() -> None:
    for left_out in ({"only": ["gradient"]}, {"skip": ["vmap"]}):
        with pytest.raises(ValueError, match=r"\['vmap'\], which only and skip leave out"):
            assert_op_ok(Plain, X, require=["vmap"], **left_out)


def test_names() -> None:
    with pytest.raises(ValueError, match="there is no check 'gradeint'; there is 'gradient'"):
        assert_op_ok(Plain, X, require=["gradeint"])
    with pytest.raises(TypeError, match="expected a list of names of checks, got the string"):
        assert_op_ok(Plain, X, only="gradient")


def test_reference_and_keywords() -> None:
    """The reference saves the input's sign, one byte: more than that is a failure."""
    inputs = {"keywords": {"negative_slope": 0.5}, "only": ["gradient", "saved bytes"]}
    leaky = torch.nn.functional.leaky_relu

    def reference(input: Tensor, negative_slope: float) -> Tensor:
        return torch.where(input < 0, negative_slope * input, input)

    assert_op_ok(leaky, torch.tensor([-1.0, 2.0]), **inputs, require=["gradient"])
    with pytest.raises(CheckError, match="8 bytes saved for backward, 2 by the reference"):
        assert_op_ok(leaky, torch.tensor([-1.0, 2.0]), **inputs, reference=reference)
