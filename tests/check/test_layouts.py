"""The checks of layouts: what assumes contiguous memory fails, and says for which layout."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from manual_ops import check
from manual_ops.check import Row

NAMES = ("layouts", "grad_output layouts", "channels_last")

GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
IMAGE = torch.randn(2, 3, 4, 5, generator=GENERATOR, dtype=torch.float64)


class _Double(Function):
    """``2 x``, right; the wrong ops differ in one thing each."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return 2 * input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output


class _InputByView(_Double):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return 2 * input.view(-1).view(input.shape)


class _InputByMemory(_Double):
    """Reads the memory in order, whatever the strides: silently wrong."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        contiguous = [1]
        for size in reversed(input.shape[1:]):
            contiguous.insert(0, contiguous[0] * size)
        return 2 * input.as_strided(input.shape, contiguous)


class _GradientByView(_Double):
    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output.view(-1).view(grad_output.shape)


class _GradientByMemory(_Double):
    """Takes the first number for all, if all are stored as one."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output if 0 in grad_output.stride() else 2 * grad_output


class _GradientContiguous(_Double):
    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output.contiguous()


class _OutputContiguous(_Double):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return 2 * input.contiguous()


def _row(name: str, fn: Any, *inputs: Any, **settings: Any) -> Row:
    (row,) = check(fn, *inputs, only=[name], **settings)[name]
    return row


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (_Double, (IMAGE,)),
        (F.conv2d, (IMAGE, IMAGE[:, :, :2, :3].clone(), IMAGE[0, 0, 0, :2].clone())),
        (F.max_pool2d, (IMAGE, 2)),
        (F.conv3d, (IMAGE[None], IMAGE[None, :, :, :2, :2].clone())),
        (nn.BatchNorm2d(3).double(), (IMAGE,)),
        (lambda input: input.exp().sum((2, 3)), (IMAGE,)),
    ],
    ids=["function", "conv2d", "max_pool2d", "conv3d", "BatchNorm2d", "sum"],
)
def test_right_ops_pass(name: str, fn: Any, inputs: tuple[Any, ...]) -> None:
    assert _row(name, fn, *inputs).verdict == "pass"


@pytest.mark.parametrize(
    ("name", "op", "layout"),
    [
        ("layouts", _InputByView, "transposed"),
        ("layouts", _InputByMemory, "transposed"),
        ("grad_output layouts", _GradientByView, "transposed"),
        ("grad_output layouts", _GradientByMemory, "expanded"),
    ],
)
def test_wrong_ops_fail(name: str, op: Any, layout: str) -> None:
    row = _row(name, op, MATRIX)
    assert row.failed
    assert row.where.startswith(layout)


def test_gradient_that_loses_the_format_its_output_keeps() -> None:
    row = _row("channels_last", _GradientContiguous, IMAGE)
    assert row.failed
    assert row.detail == "output channels_last, gradient of input contiguous"


@pytest.mark.parametrize("op", [_GradientContiguous, _OutputContiguous])
def test_formats_beside_a_reference(op: Any) -> None:
    row = _row("channels_last", op, IMAGE, reference=_Double)
    assert row.failed
    assert "the reference's (60, 1, 15, 3)" in row.detail
    assert _row("channels_last", _Double, IMAGE, reference=op).failed is (op is _OutputContiguous)


def test_output_strides_beside_a_reference() -> None:
    row = _row("layouts", _OutputContiguous, MATRIX, reference=_Double)
    assert (row.verdict, "output: strides (4, 1)" in row.detail) == ("FAIL", True)


def test_expanded_rows_that_the_op_does_not_take() -> None:
    assert _row("layouts", torch.linalg.inv, MATRIX[:, :3] + 3 * torch.eye(3)).verdict == "pass"


def test_random_numbers_drawn_in_the_order_of_memory() -> None:
    row = _row("layouts", F.dropout, MATRIX)
    assert (row.verdict, "random" in row.detail) == ("n/a", True)
    assert _row("layouts", F.dropout, MATRIX, reference=F.dropout).verdict == "pass"


def test_nothing_to_lay_out() -> None:
    assert _row("layouts", torch.sin, MATRIX[0, 0]).verdict == "n/a"
    assert _row("grad_output layouts", F.mse_loss, MATRIX, MATRIX + 1).verdict == "n/a"
    assert _row("channels_last", torch.sin, MATRIX).verdict == "n/a"
