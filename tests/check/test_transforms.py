"""The checks of torch.func: right ops pass, each wrong one fails in the row that is about it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from manual_ops import check
from manual_ops.check import Row

NAMES = ("vmap", "per-sample gradients", "backward through vmap", "jacobian", "hessian")

POINT = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class _Square(Function):
    """``x ** 2``, right in everything; the wrong ops differ from it in one thing each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input * input

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * grad_output * input

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * tangent * input


def _with_vmap(rule: Callable[..., tuple[Tensor, int]], base: type[Function] = _Square) -> Any:
    members = {"generate_vmap_rule": False, "vmap": staticmethod(rule)}
    return type(base.__name__, (base,), members)


# Right along dimension 0 alone.
_LeadingOnly = _with_vmap(lambda info, in_dims, input: (input * input, 0))
# Samples get mixed up.
_Mixed = _with_vmap(
    lambda info, in_dims, input: ((input * input).movedim(in_dims[0], 0).flip(0), 0)
)
# The right values, cut off from the graph.
_Detached = _with_vmap(lambda info, in_dims, input: ((input * input).detach(), in_dims[0]))


class _Double(_Square):
    """``2 x``."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return 2 * input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


_DoubleMixed = _with_vmap(
    lambda info, in_dims, input: (2 * input.movedim(in_dims[0], 0).flip(0), 0), _Double
)


class _GradientMixed(_Square):
    """A backward that is not to be mapped."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return _DoubleMixed.apply(grad_output * input)


class _WrongTangent(_Square):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2.02 * tangent * input


class _DoubleWrongTangent(_Double):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return -2 * tangent


class _GradientWrongTangent(_Square):
    """A backward whose forward mode is wrong."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return _DoubleWrongTangent.apply(grad_output * input)


class _NoRule(_Square):
    generate_vmap_rule = False


def _branches(input: Tensor) -> Tensor:
    return input * 2 if input.sum() > 0 else input * 3


def _rows(name: str, fn: Any, *inputs: Any, **settings: Any) -> tuple[Row, ...]:
    report = check(fn, *inputs, only=[name], **settings)
    return report[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (_Square, (POINT,)),
        (torch.nn.functional.linear, (POINT, POINT[:2] + 1, POINT[0, :2])),
        (torch.mul, (POINT.to(torch.complex128) * (1 + 2j), POINT[0].to(torch.complex128) * 1j)),
        (torch.nn.functional.cross_entropy, (POINT, torch.tensor([1, 0, 3]))),
        (torch.nn.functional.dropout, (POINT,)),
        (lambda input: (input.exp(), input.sum(), input.argmax()), (POINT,)),
        (torch.sin, (POINT[0, 0],)),
        (torch.linalg.inv, (POINT[:, :3] + 3 * torch.eye(3),)),
        (nn.Dropout(), (POINT,)),
        (nn.BatchNorm1d(4).double().eval(), (POINT,)),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), (POINT,)),
        (nn.MultiheadAttention(4, 2).double(), (POINT, POINT, POINT)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_right_ops_pass(name: str, fn: Any, inputs: tuple[Any, ...]) -> None:
    assert [row.verdict for row in _rows(name, fn, *inputs)] == ["pass"] * (
        2 if name == "jacobian" else 1
    )


@pytest.mark.parametrize(
    ("op", "failing"),
    [
        (_LeadingOnly, {"vmap", "backward through vmap"}),
        (_Mixed, {"vmap", "backward through vmap"}),
        (_Detached, {"backward through vmap"}),
        (_GradientMixed, {"per-sample gradients", "backward through vmap"}),
        (_WrongTangent, {"jacobian"}),
        (_GradientWrongTangent, {"hessian"}),
        (_branches, {"vmap", "per-sample gradients", "backward through vmap"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_ops_fail(op: Any, failing: set[str]) -> None:
    report = check(op, POINT, only=NAMES)
    found = {row.check for row in report.failures}
    assert found >= failing
    # jacrev maps backward, so that a wrong rule of vmap may show there too.
    assert found - failing <= {"per-sample gradients", "jacobian", "hessian"}


def test_names_the_mode_and_the_place() -> None:
    reverse, forward = _rows("jacobian", _WrongTangent, POINT)
    assert (reverse.subject, reverse.verdict) == ("jacrev", "pass")
    assert (forward.subject, forward.verdict) == ("jacfwd", "FAIL")
    assert forward.relative == pytest.approx(0.01)
    (row,) = _rows("vmap", _LeadingOnly, POINT.T[:, :3].reshape(3, 4)[:3, :3])
    assert "batched in dimension -1" in row.where


def test_one_input_batched_alone_is_checked() -> None:
    """A rule that takes for granted that everything is batched."""

    class Product(Function):
        @staticmethod
        def forward(left: Tensor, right: Tensor) -> Tensor:
            return left * right

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
            left, right = ctx.saved_tensors
            return grad_output * right, grad_output * left

        @staticmethod
        def vmap(info: Any, in_dims: Any, left: Tensor, right: Tensor) -> tuple[Tensor, int]:
            moved = [
                x.movedim(d, 0) if d is not None else x[:1] + x.sum()
                for x, d in zip((left, right), in_dims, strict=True)
            ]
            return Product.apply(*moved), 0

    (row,) = _rows("vmap", Product, POINT[:, :3], POINT[:, 1:])
    assert row.failed
    assert row.where.startswith(("left batched", "right batched"))


def test_updated_buffers_are_compared() -> None:
    """torch.nn's batch norm drops the update of statistics that are batched along the end."""
    (row,) = _rows("vmap", nn.BatchNorm1d(4).double(), POINT)
    assert row.failed
    assert "updated running_mean" in row.where


def test_what_a_function_does_not_offer_is_not_applicable() -> None:
    (row,) = _rows("vmap", _NoRule, POINT)
    assert (row.verdict, "generate_vmap_rule" in row.detail) == ("n/a", True)
    no_jvp = type("NoJvp", (_Square,), {"jvp": staticmethod(Function.jvp)})
    assert [row.verdict for row in _rows("jacobian", no_jvp, POINT)] == ["pass", "n/a"]


def test_random_numbers_that_differ_under_a_transform_are_not_compared() -> None:
    def noisy(input: Tensor) -> Tensor:
        inside = torch._C._functorch.maybe_get_level(input) > 0
        return input * torch.rand(8 if inside else 1).sum()

    for name in NAMES:
        (row,) = _rows(name, noisy, POINT)
        assert (row.verdict, row.detail[:5]) == ("n/a", "draws"), name
