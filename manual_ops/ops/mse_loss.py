"""Squared error.

Index convention: ``i`` runs over all elements of input x and target t.

Forward:   l[i] = (x[i] - t[i])^2
Backward:  dL/dx[i] = 2 r[i] (x[i] - t[i]),  dL/dt[i] = -2 r[i] (x[i] - t[i])
Tangent:   l'[i] = 2 (x[i] - t[i]) (x'[i] - t'[i]), reduced like l

The output y of l, and r of dL/dy, follow from the reduction as in _loss.py. With weights w,
w[i] l[i] takes the place of l[i] and sum_k w[k] that of N. So dL/dx and dL/dt get the factor w[i],
and
           dL/dw[i] = r[i] l[i] (none, sum) or r[i] (l[i] - y) (mean, by the quotient rule)
Source: Bishop, Pattern Recognition and Machine Learning (2006), section 3.1.1.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import accumulate_wide, full_precision
from ._loss import bind_pointwise_loss, reduced, resolve_reduction


@accumulate_wide
def _input_slope(factor: Tensor, input: Tensor, target: Tensor) -> Tensor:
    difference = input - target
    return difference.mul_(2 * factor) if may_overwrite(factor) else difference * (2 * factor)


@accumulate_wide
def _target_slope(factor: Tensor, input: Tensor, target: Tensor) -> Tensor:
    return (target - input) * (2 * factor)


def _forward(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    return torch.nn.functional.mse_loss(input, target, reduction=reduction)


_mse_loss = bind_pointwise_loss(
    _forward, _input_slope, _target_slope, "input and target of one shape and floating dtype"
)


class _WeightedMSELoss(Function):
    """Returns x - t and sum w beside the loss: what backward needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor, reduction: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        difference, total = input - target, weight.sum()
        values = difference.square() * weight
        loss = values.sum() / total if reduction == "mean" else reduced(values, reduction)
        return loss, difference, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _input, _target, weight, reduction = inputs
        needs_input, needs_target, needs_weight, _ = ctx.needs_input_grad
        loss, difference, total = output
        ctx.is_mean = reduction == "mean"
        ctx.is_reduced = reduction != "none"
        ctx.weight_shape = weight.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            difference,
            weight if needs_input or needs_target else None,
            loss if needs_weight and ctx.is_mean else None,
            total if ctx.is_mean else None,
        )
        ctx.save_for_forward(difference, weight, loss, total)

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_difference: Tensor | None,
        grad_total: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        difference, weight, loss, total = ctx.saved_tensors
        needs_input, needs_target, needs_weight, _ = ctx.needs_input_grad
        grad_input = grad_target = grad_weight = None
        if grad_output is None:
            factor = torch.zeros_like(difference)
        else:
            factor = grad_output / total if ctx.is_mean else grad_output
        if needs_input or needs_target:
            slope = _plus(2 * factor * weight * difference, grad_difference)
            grad_input = slope if needs_input else None
            grad_target = -slope if needs_target else None
        if needs_weight:
            # If the target broadcasts, a weight multiplies several losses but is once in its sum.
            grad_weight = (factor * difference.square()).sum_to_size(ctx.weight_shape)
            if ctx.is_mean:
                grad_weight = grad_weight - factor * loss
            grad_weight = _plus(grad_weight, grad_total)
        return grad_input, grad_target, grad_weight, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        _reduction: None,
    ) -> tuple[Tensor, ...]:
        difference, weight, loss, total = ctx.saved_tensors
        zeros = torch.zeros_like(difference)
        difference_tangent = _plus(zeros, input_tangent)
        if target_tangent is not None:
            difference_tangent = difference_tangent - target_tangent
        tangent = 2 * weight * difference * difference_tangent
        if weight_tangent is None:
            weight_tangent = torch.zeros_like(weight)
        total_tangent = weight_tangent.sum()
        tangent = tangent + weight_tangent * difference.square()
        if ctx.is_reduced:
            tangent = tangent.sum()
        if ctx.is_mean:
            tangent = (tangent - loss * total_tangent) / total
        return tangent, difference_tangent, total_tangent


def _plus(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


_weighted_mse_loss = bind(_WeightedMSELoss, "input, target and weight of one shape")


@overridable(torch.nn.functional.mse_loss)
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean of ``(input - target)^2``; drop-in for :func:`torch.nn.functional.mse_loss`.

    Args:
        input: Any shape, floating dtype.
        target: Same shape; another that broadcasts is taken with a warning, as in torch.
        size_average: Deprecated, see ``reduction``.
        reduce: Deprecated, see ``reduction``.
        reduction: ``none``, ``mean`` or ``sum``.
        weight: Same shape as ``input``; the mean then divides by the sum of weights.

    Returns:
        A scalar, or the broadcast shape for ``none``; float32 for half inputs under autocast, on
            CPU if there is no ``weight``.

    Raises:
        ValueError: Unknown ``reduction``; ``weight`` of another shape than ``input``.
        RuntimeError: Shapes that do not broadcast.
    """
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,  # this function's decorator, then its caller
        )
    reduction = resolve_reduction(reduction, size_average, reduce)
    wide, wide_target = _broadcast(input, target)
    if weight is not None and weight.size() != input.size():
        raise ValueError(
            "Weights and input must have the same size: "
            f"expected weight {tuple(input.shape)}, got {tuple(weight.shape)}"
        )
    numbers = (_numbers(wide), _numbers(wide_target), weight)
    input_, target_, weight_ = full_precision(*numbers, on_cpu=weight is None)
    loss: Tensor
    if weight_ is None:
        loss = _mse_loss(input_, target_, reduction)
    else:
        loss, *_residuals = _weighted_mse_loss(input_, target_, weight_, reduction)
    return loss


def _numbers(tensor: Tensor) -> Tensor:
    """Booleans as 0 and 1, which, unlike them, can be subtracted."""
    return tensor.byte() if tensor.dtype == torch.bool else tensor


def _broadcast(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    if input.shape == target.shape:
        return input, target
    try:
        broadcast: tuple[Tensor, ...] = torch.broadcast_tensors(input, target)
        return broadcast
    except RuntimeError as error:
        raise RuntimeError(
            f"mse_loss: expected a target that broadcasts with input {tuple(input.shape)}, "
            f"got {tuple(target.shape)}"
        ) from error
