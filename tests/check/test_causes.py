"""What torch says when an op breaks its rules is told in terms of the op."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from manual_ops.check import Report, check
from tests.check.right_ops import LINEAR, Exp, Linear, linear_backward, normal

X = normal(3, 4)


def failing(fn: Any, *inputs: Any, check_name: str = "gradient") -> Any:
    report = check(fn, *inputs, only=[check_name])
    assert report.failures, f"\n{report}"
    return report.failures[0]


def exp_with(backward: Callable[..., Any]) -> type[Function]:
    return type("Broken", (Exp,), {"backward": staticmethod(backward)})


BROKEN = {
    "too many gradients": (lambda ctx, g: (g, g), "one gradient for each argument"),
    "number": (lambda ctx, g: 1.0, "not Python numbers"),
    "wrong shape": (lambda ctx, g: g[:2], "its input's shape"),
    "None as operand": (lambda ctx, g: g * None, "None is taken for a tensor"),
    "view of a transposed gradient": (lambda ctx, g: g.mT.view(-1).view(3, 4), "reshape"),
    "two dtypes": (lambda ctx, g: g @ g.float().mT @ g, "Two dtypes meet"),
    "undefined name": (lambda ctx, g: g.no_such_thing(), "by hand to see the traceback"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_backward(name: str) -> None:
    backward, told = BROKEN[name]
    row = failing(exp_with(backward), X)
    assert told in row.cause


def test_gradient_of_a_number() -> None:
    class Broken(Function):
        @staticmethod
        def forward(ctx, x, factor):
            return x * factor

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output, grad_output

    assert "not a Tensor: return None there" in failing(Broken, X, 2.0).cause


def test_no_backward() -> None:
    class Broken(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

    assert "no backward" in failing(Broken, X).cause


def test_saved_tensor_overwritten() -> None:
    def op(x: Tensor) -> Tensor:
        y = Exp.apply(x)
        return y.mul_(2)

    row = failing(op, X)
    assert "RuntimeError: one of the variables needed" in row.detail
    assert "work out of place, or save a copy" in row.cause


def test_detached_result() -> None:
    assert "cut off from its inputs" in failing(lambda x: Exp.apply(x).detach(), X).cause


def test_numpy_under_vmap() -> None:
    class InNumpy(Exp):
        @staticmethod
        def forward(x):
            return torch.from_numpy(np.exp(x.detach().numpy()))

    row = failing(InNumpy, X, check_name="vmap")
    assert "The op leaves torch" in row.cause
    assert row.where.endswith("in forward")


def test_the_place_is_a_line_of_the_op() -> None:
    row = failing(exp_with(lambda ctx, g: g + torch.ones(7)), X)
    assert row.where.startswith("test_causes.py:")


def test_wrong_numbers_without_a_function_are_not_put_down_to_backward() -> None:
    row = failing(lambda x, w: x * w.detach(), X, X, check_name="double backward")
    assert "no Function" in row.cause


class TransposedAndUnsummed(Linear):
    backward = linear_backward(
        weight=lambda g, x, weight: (x.mT @ g).mT * 2, bias=lambda g, x, weight: g * 1
    )


def all_rows(fn: Any, *inputs: Any) -> Report:
    return check(fn, *inputs, only=["gradient", "gradients returned", "double backward"])


def test_an_error_is_explained_once() -> None:
    report = all_rows(exp_with(lambda ctx, g: (g, g)), X)
    causes = [row.cause for row in report.failures]
    assert "one gradient for each argument" in causes[0]
    assert causes[1:] == ["As in 'gradient'."] * 2


def test_two_mistakes_are_told_apart() -> None:
    report = all_rows(TransposedAndUnsummed, *LINEAR)
    assert [(row.check, row.subject) for row in report.failures] == [
        ("gradient", "weight"),
        ("gradients returned", "bias of TransposedAndUnsummed"),
    ]
    assert "2 times the right one" in report.failures[0].cause
    assert "sum_to_size" in report.failures[1].cause
