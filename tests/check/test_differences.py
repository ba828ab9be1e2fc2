"""Finite differences: right derivatives pass, wrong ones are found and placed, kinks are named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from manual_ops.check import Row, check


def with_gradient(
    forward: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
) -> type[Function]:
    """An elementwise Function whose derivative is claimed to be ``slope``."""

    class Claimed(Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor) -> Tensor:
            ctx.save_for_backward(input)
            return forward(input)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            (input,) = ctx.saved_tensors
            return grad_output * slope(input)

    return Claimed


def gradient_row(fn: Any, *inputs: Tensor) -> Row:
    (row,) = check(fn, *inputs, only=["gradient"]).rows
    return row


def points(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


SMOOTH = {
    "steep": (lambda x: torch.exp(30 * x), points(0.1, 0.5, -0.3)),
    "fast": (lambda x: torch.sin(300 * x), points(0.1, 0.5, -0.3)),
    "near the edge of its domain": (torch.log, points(1e-6, 2.0)),
    "near a kink": (torch.relu, points(1e-7, -1e-7, 1.0)),
    "of very different sizes": (torch.square, points(1e-8, 1.0, 1e8)),
    "of very small numbers": (torch.sin, points(1e-20, 3e-20)),
    "constant": (lambda x: x * 0 + 1, points(1.0, 2.0)),
    "zero": (torch.sin, torch.zeros(3, dtype=torch.float64)),
    "float32": (torch.tanh, points(0.3, -2.0, dtype=torch.float32)),
    "complex": (lambda z: z * z.conj() * z, torch.tensor([1 + 2j, 0.5 - 1j])),
    "scalar": (torch.sin, torch.tensor(0.3)),
    "infinite elsewhere": (lambda x: torch.where(x > 0, x, -torch.inf), points(1.0, -1.0)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_right_derivatives_pass(name: str) -> None:
    function, x = SMOOTH[name]
    row = gradient_row(function, x)
    assert row.verdict == "pass", row


KINKS = {
    "relu": (torch.relu, points(-1.0, 0.0, 1.0), "[1] has slope 0 from the left"),
    "elu": (lambda x: torch.nn.functional.elu(x, 2.0), points(0.0), "[0] has slope "),
    "clamp": (lambda x: x.clamp(-1, 1), points(0.5, 1.0), "[1] has slope "),
    "max of equals": (lambda x: x.max(0)[0], points(2.0, 2.0, 1.0), "2 places: [0]"),
    "square root at 0": (torch.sqrt, points(4.0, 0.0), "[1]"),
    "step": (lambda x: torch.where(x < 0, x, x + 1), points(-1.0, 0.0), "[1] lies on a jump"),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_named(name: str) -> None:
    function, x, expected = KINKS[name]
    row = gradient_row(function, x)
    assert row.verdict == "kink", row
    assert expected in row.detail


@pytest.mark.parametrize("slope_at_kink", [-1.0, -0.3, 1.0])
def test_every_subgradient_is_right(slope_at_kink: float) -> None:
    claimed = with_gradient(torch.abs, lambda x: torch.where(x == 0, slope_at_kink, x.sign()))
    assert gradient_row(claimed, points(1.0, 0.0)).verdict == "kink"


@pytest.mark.parametrize("slope_at_kink", [-1.1, 2.0, torch.nan, torch.inf])
def test_what_is_no_subgradient_fails(slope_at_kink: float) -> None:
    claimed = with_gradient(torch.abs, lambda x: torch.where(x == 0, slope_at_kink, x.sign()))
    row = gradient_row(claimed, points(1.0, 0.0, 2.0))
    assert row.verdict == "FAIL"
    assert row.where == "[1]"


def test_a_wrong_gradient_beside_a_kink_fails() -> None:
    claimed = with_gradient(torch.relu, lambda x: (x > 0) * torch.where(x == 2, 1.01, 1.0))
    row = gradient_row(claimed, points(0.0, 1.0, 2.0))
    assert row.verdict == "FAIL"
    assert row.where == "[2]"
    assert row.relative == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("shape", [(), (64,), (8, 8), (40, 50), (3, 100, 100)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_one_wrong_element_is_found_in_any_size(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    index = int(torch.randint(x.numel(), (), generator=generator))
    factor = torch.ones_like(x)
    factor.view(-1)[index] = 1.01
    row = gradient_row(with_gradient(torch.exp, lambda x: x.exp() * factor), x)
    assert row.verdict == "FAIL"
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), shape)] if shape else []
    assert row.where == str(place)
    assert row.relative == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("count", [200, 5000])
def test_kinks_do_not_hide_the_rest(count: int) -> None:
    """Twenty kinks among many elements: named, and what is smooth is still checked."""
    x = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    x[:: count // 20] = 0.0
    assert gradient_row(torch.relu, x).verdict == "kink"
    claimed = with_gradient(torch.relu, lambda x: (x > 0) * torch.where(x == x[-1], 1.01, 1.0))
    row = gradient_row(claimed, x)
    assert row.verdict == "FAIL"
    assert row.where == f"[{count - 1}]"


def test_the_mistake_of_a_float32_op_is_seen_at_its_precision() -> None:
    claimed = with_gradient(lambda x: x.float().sin(), lambda x: x.float().cos() * 1.03)
    report = check(claimed, points(0.3, 0.7, 1.1, dtype=torch.float32), only=["gradient"])
    assert not report.ok
    assert "does not compute in float64" in " ".join(report.notes)


def test_nan_where_the_derivative_is_finite_fails() -> None:
    claimed = with_gradient(torch.sin, lambda x: torch.where(x == 1, torch.nan, x.cos()))
    row = gradient_row(claimed, points(0.0, 1.0))
    assert (row.verdict, row.where) == ("FAIL", "[1]")


def test_forward_mode_is_judged_output_by_output() -> None:
    class WrongTangent(Function):
        @staticmethod
        def forward(input: Tensor) -> Tensor:
            return input.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            return grad_output * ctx.saved_tensors[0].cos()

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            wrong = torch.tensor([1.0, 1.0, 0.99], dtype=tangent.dtype)
            return tangent * ctx.saved_tensors[0].cos() * wrong

    report = check(WrongTangent, points(0.1, 0.2, 0.3), only=["gradient", "forward mode"])
    gradient, tangent = report.rows
    assert gradient.verdict == "pass"
    assert (tangent.verdict, tangent.where) == ("FAIL", "[2]")
