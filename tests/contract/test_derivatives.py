"""Derivatives of first, second and third order, by every route PyTorch offers.

The truth is finite differences of the next lower order, itself checked by the test before. It is
not torch.nn: its training-mode batch norm raises in third order, and is silently wrong where
forward mode is nested or differentiated in reverse (DESIGN.md, contract point 2).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from manual_ops.testing.cases import OpCase
from tests.harness import cases_for, on_differentiable, random_like, scalar, subject

pytestmark = cases_for()

Tensors = tuple[Tensor, ...]
Scalar = Callable[..., Tensor]

STEP = 1e-4  # central differences in float64: truncation about 1e-8, rounding about 1e-11


def directions(tensors: Tensors, seed: int) -> Tensors:
    return tuple(random_like(tensor, seed + i) for i, tensor in enumerate(tensors))


def reverse(function: Scalar, direction: Tensors) -> Scalar:
    """The derivative of ``function`` along ``direction``, through its gradient."""

    def derivative(*tensors: Tensor) -> Tensor:
        value = function(*tensors)
        if not value.requires_grad:  # an earlier derivative is constant
            return torch.zeros_like(value)
        gradient = torch.autograd.grad(
            value, tensors, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))

    return derivative


def forward(function: Scalar, direction: Tensors) -> Scalar:
    """The derivative of ``function`` along ``direction``, by forward mode."""
    return lambda *tensors: torch.func.jvp(function, tensors, direction)[1]


def transformed_reverse(function: Scalar, direction: Tensors) -> Scalar:
    """Like :func:`reverse` by torch.func, which nests with forward mode."""

    def derivative(*tensors: Tensor) -> Tensor:
        gradient = torch.func.grad(function, argnums=tuple(range(len(tensors))))(*tensors)
        return sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))

    return derivative


def finite_difference(function: Scalar, tensors: Tensors, direction: Tensors) -> Tensor:
    """The derivative of ``function`` along ``direction``, by central differences."""
    up, down = (
        tuple(
            (t + sign * STEP * d).detach().requires_grad_()
            for t, d in zip(tensors, direction, strict=True)
        )
        for sign in (1, -1)
    )
    return (function(*up) - function(*down)) / (2 * STEP)


def test_first_order(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    assert gradcheck(function, tensors, check_batched_grad=True)


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_forward_mode(case: OpCase, batched: bool) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    assert gradcheck(
        function,
        tensors,
        check_forward_ad=True,
        # gradcheck offers no way to let vmap draw the same numbers for every direction.
        check_batched_forward_grad=batched and not case.random,
        check_backward_ad=False,
        check_undefined_grad=False,
    )


def test_second_order(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    assert gradgradcheck(function, tensors, check_batched_grad=True)


def test_forward_over_reverse(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    assert gradgradcheck(
        function,
        tensors,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (reverse, reverse),
        (forward, transformed_reverse),
        (transformed_reverse, forward),
        (transformed_reverse, transformed_reverse),
        (forward, forward),
    ],
    ids=[
        "reverse_over_reverse",
        "forward_over_reverse",
        "reverse_over_forward",
        "grad_of_grad",
        "jvp_of_jvp",
    ],
)
def test_second_order_routes(case: OpCase, outer: Callable, inner: Callable) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    value, first, second = (
        scalar(function, tensors),
        directions(tensors, 10),
        directions(tensors, 20),
    )
    truth = finite_difference(reverse(value, first), tensors, second)
    found = outer(inner(value, first), second)(*tensors)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [(reverse, reverse), (forward, transformed_reverse), (forward, forward)],
    ids=["reverse", "forward_over_reverse", "forward"],
)
def test_third_order(case: OpCase, outer: Callable, inner: Callable) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    first, second, third = (directions(tensors, seed) for seed in (10, 20, 30))
    value = scalar(function, tensors)
    truth = finite_difference(reverse(reverse(value, first), second), tensors, third)
    found = outer(inner(inner(value, first), second), third)(*tensors)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)
