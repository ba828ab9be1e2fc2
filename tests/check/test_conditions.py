"""The checks under other conditions: empty batches, autocast, tensors without data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from manual_ops import check
from manual_ops.check import Row

NAMES = ("empty batch", "autocast", "meta device")

GENERATOR = torch.Generator().manual_seed(0)
POINT = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64)


class _Linear(Function):
    """``x W^T``, right; the wrong ops differ in one thing each."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return input @ weight.T

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        return grad_output @ weight.to(grad_output), grad_output.T @ input.to(grad_output)


class _EmptyMean(_Linear):
    """0 / 0 where there is no sample."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        grad_input, grad_weight = _Linear.backward(ctx, grad_output)
        count = grad_output.new_tensor(len(grad_output))
        return grad_input, grad_weight / count * count


class _EmptyReshape(_Linear):
    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        grad_input, grad_weight = _Linear.backward(ctx, grad_output)
        return grad_input.reshape(len(grad_output), -1), grad_weight


class _KeepsOne(_Linear):
    """A sample from nowhere."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        output = _Linear.forward(ctx, input, weight)
        return output if len(output) else output.new_zeros(1, output.shape[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return _Linear.backward(ctx, grad_output[: len(ctx.saved_tensors[0])])


class _ForgetsAutocast(_Linear):
    """Forward runs under autocast, backward does not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.T @ input


class _WrongUnderAutocast(_Linear):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        output = _Linear.forward(ctx, input, weight)
        return output * 1.2 if torch.is_autocast_enabled("cpu") else output


class _OnTheDefaultDevice(_Linear):
    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        grad_input, grad_weight = _Linear.backward(ctx, grad_output)
        return grad_input * torch.ones(4), grad_weight


class _ShapeWithoutData(_Linear):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        output = _Linear.forward(ctx, input, weight)
        return output.sum(0) if output.is_meta else output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        grad_output = grad_output.expand(3, 2) if grad_output.is_meta else grad_output
        return _Linear.backward(ctx, grad_output)


def _rows(name: str, fn: Any, *inputs: Any, **settings: Any) -> list[Row]:
    return list(check(fn, *inputs, only=[name], **settings)[name])


def _verdicts(*args: Any, **settings: Any) -> list[str]:
    return [row.verdict for row in _rows(*args, **settings)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (_Linear, (POINT, WEIGHT)),
        (F.linear, (POINT, WEIGHT)),
        (F.cross_entropy, (POINT, torch.tensor([1, 0, 3]))),
        (F.embedding, (torch.tensor([1, 0, 1]), WEIGHT)),
        (F.dropout, (POINT,)),
    ],
    ids=["function", "linear", "loss", "embedding", "random"],
)
def test_right_ops_pass(name: str, fn: Any, inputs: tuple[Any, ...], dtype: torch.dtype) -> None:
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    assert set(_verdicts(name, fn, *inputs)) == {"pass"}
    assert set(_verdicts(name, fn, *inputs, reference=fn)) == {"pass"}


@pytest.mark.parametrize("name", NAMES)
def test_modules_pass(name: str) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Dropout(0.5)).eval()
    assert set(_verdicts(name, module, POINT.float())) == {"pass"}


@pytest.mark.parametrize(
    ("op", "name", "found"),
    [
        (_EmptyMean, "empty batch", "is nan, expected 0"),
        (_EmptyReshape, "empty batch", "RuntimeError: cannot reshape tensor of 0 elements"),
        (_KeepsOne, "empty batch", "output: shape [1, 2], of a batch [3, 2]"),
        (_ForgetsAutocast, "autocast", "RuntimeError: expected m1 and m2 to have the same dtype"),
        (_WrongUnderAutocast, "autocast", "is "),
        (_OnTheDefaultDevice, "meta device", "RuntimeError"),
        (_ShapeWithoutData, "meta device", "output: shape [2], of data [3, 2]"),
    ],
)
def test_wrong_ops_fail(op: Any, name: str, found: str) -> None:
    rows = _rows(name, op, POINT, WEIGHT)
    failed = [row for row in rows if row.failed]
    assert failed, rows
    assert failed[0].detail.startswith(found)
    for other in NAMES:
        assert other == name or "FAIL" not in _verdicts(other, op, POINT, WEIGHT), other


def test_empty_batch_beside_a_reference() -> None:
    (row,) = _rows("empty batch", _KeepsOne, POINT, WEIGHT, reference=F.linear)
    assert row.detail == "output: shape [1, 2], the reference's [0, 2]"
    (row,) = _rows("empty batch", _EmptyMean, POINT, WEIGHT, reference=F.linear)
    assert row.where.startswith("gradient of weight")


def test_empty_batch_that_the_op_refuses() -> None:
    def refuses(input: Tensor) -> Tensor:
        if not len(input):
            raise ValueError("at least one sample, please")
        return input * 2

    (row,) = _rows("empty batch", refuses, POINT)
    assert (row.verdict, row.detail) == ("n/a", "ValueError: at least one sample, please")
    (row,) = _rows("empty batch", refuses, POINT, reference=lambda input: input * 2)
    assert row.failed
    (row,) = _rows("empty batch", torch.sin, POINT[0, 0])
    assert (row.verdict, row.detail) == ("n/a", "no input has a dimension")


def test_autocast_beside_a_reference() -> None:
    def keeps_float32(input: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(input.to(weight), weight)

    for row in _rows("autocast", keeps_float32, POINT, WEIGHT, reference=F.linear):
        assert row.detail == "output: dtype float32, the reference's bfloat16"
    assert _verdicts("autocast", keeps_float32, POINT, WEIGHT) == ["pass", "pass"]


def test_autocast_of_a_dtype_that_the_op_does_not_take() -> None:
    float32, bfloat16 = _rows("autocast", torch.linalg.det, POINT[:, :3])
    assert (float32.verdict, bfloat16.verdict) == ("pass", "n/a")


def test_meta_device_of_an_op_that_reads_values() -> None:
    def reads(input: Tensor) -> Tensor:
        return input * 2 if input.sum().item() > 0 else input * 3

    (row,) = _rows("meta device", reads, POINT)
    assert (row.verdict, row.detail.startswith("reads the values")) == ("n/a", True)
    (row,) = _rows("meta device", reads, POINT, reference=lambda input: input * 2)
    assert row.failed
    (row,) = _rows("meta device", lambda input: input * WEIGHT[0], POINT)
    assert (row.verdict, "another device" in row.detail) == ("n/a", True)
