"""Negative log-likelihood of log-probabilities x and class indices t.

Index convention: ``n`` runs over all samples (batch and trailing dims), ``c`` over classes.
a[n] = w[t[n]], or 0 where t[n] is the ignored index; w = 1 without class weights.

Forward:   l[n] = -a[n] x[n, t[n]]
           y = l (reduction none), sum_n l[n] (sum) or (sum_n l[n]) / sum_n a[n] (mean)
Backward:  dL/dx[n, c] = -r[n] a[n] if c = t[n] else 0
           r[n] = dL/dy[n] (none), dL/dy (sum) or dL/dy / sum_k a[k] (mean)
Tangent:   l'[n] = -a[n] x'[n, t[n]], reduced like l

Only the target is saved, not the input. Source: Bishop, Pattern Recognition and Machine
Learning (2006), equation 4.108.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import full_precision, widen
from ._loss import check_constant_weights, resolve_reduction

EXPECTS = (
    "input (N, C, d1, ..., dK) or (C,) of floating dtype, at least of one dim; target "
    "(N, d1, ..., dK) or () of int64 class indices in [0, C) or ignore_index; weight (C,)"
)


def class_dim(input: Tensor) -> int:
    """Dim of the classes: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``."""
    return 1 if input.dim() > 1 else 0


def is_counted(target: Tensor, ignore_index: int) -> Tensor:
    """Return whether each t[n] is not the ignored index; in uint8, -100 would be 156."""
    return target.long() != ignore_index


def sample_factors(
    grad_output: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return t made safe to index with, r (0 where ignored, also of 0/0), and r a, for each sample.

    ``grad_output`` is dL/dy; 1 gives what a tangent is reduced with.
    """
    valid = is_counted(target, ignore_index)
    index = torch.where(valid, target, 0).long()
    counted = _counted(index, valid, weight)
    if reduction == "mean":
        grad_output = grad_output / counted.sum()
    r = torch.where(valid, grad_output, 0)
    return index, r, r if weight is None else r * counted


def common_factor(
    grad_output: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> float | None:
    """Return the r a that all samples share, or None where they may differ.

    For plain eager backward on CPU, where looking at numbers is cheaper than one more call.
    """
    if not may_overwrite(grad_output) or weight is not None or reduction == "none":
        return None
    real = type(grad_output) is type(target) is Tensor and target.device.type == "cpu"
    if not real or ignore_index >= 0 or target.numel() == 0 or target.min().item() < 0:
        return None
    return grad_output.item() / (target.numel() if reduction == "mean" else 1)


def divisor_of_mean(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Return the sum of a[n], given the weight of each class."""
    valid = is_counted(target, ignore_index)
    if weight is None:
        return valid.sum()
    return _counted(torch.where(valid, target, 0).long(), valid, weight).sum()


def _counted(index: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
    """Return a[n]; by torch.where, as the weight of class 0, looked up if ignored, may be NaN."""
    if weight is None or 0 in weight.shape:  # without classes every sample is ignored
        return valid
    # Not weight[index]: torch reads an index without dims on the host, and on meta it has no value.
    return torch.where(valid, torch.take(widen(weight), index), 0)


class _NLLLoss(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
    ) -> Tensor:
        loss = torch.nn.functional.nll_loss(
            input, target, weight, ignore_index=ignore_index, reduction=reduction
        )
        # Of K-dim targets it is a view, which a Function's caller could not change in place.
        return loss.clone() if loss.dim() > 1 else loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.ignore_index, ctx.reduction = inputs
        ctx.input_shape = input.shape
        ctx.save_for_backward(target, weight)
        ctx.save_for_forward(target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        target, weight = ctx.saved_tensors
        if 0 in ctx.input_shape:  # no class, and no place for the index that stands for ignored
            return grad_output.new_zeros(ctx.input_shape), None, None, None, None
        zeros = grad_output.new_zeros(ctx.input_shape)
        dim = class_dim(zeros)
        settings = target, weight, ctx.ignore_index, ctx.reduction
        factor = common_factor(grad_output, *settings)
        if factor is not None:
            zeros.scatter_(dim, target.long().unsqueeze(dim), -factor)
            return zeros, None, None, None, None
        index, _r, r_a = sample_factors(widen(grad_output), *settings)
        scatter = Tensor.scatter_ if may_overwrite(grad_output) else Tensor.scatter
        values = -r_a.to(zeros.dtype)
        grad_input = scatter(zeros, dim, index.unsqueeze(dim), values.unsqueeze(dim))
        return grad_input, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
        target, weight = ctx.saved_tensors
        wide, dim = widen(input_tangent), class_dim(input_tangent)
        index, _r, r_a = sample_factors(
            wide.new_ones(()), target, weight, ctx.ignore_index, ctx.reduction
        )
        tangent = -r_a * wide.gather(dim, index.unsqueeze(dim)).squeeze(dim)
        if ctx.reduction != "none":
            tangent = tangent.sum()
        return tangent.to(input_tangent.dtype)


_nll_loss = bind(_NLLLoss, EXPECTS)


@overridable(torch.nn.functional.nll_loss)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood; drop-in for :func:`torch.nn.functional.nll_loss`.

    Args:
        input: Log-probabilities ``(C,)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices in [0, C), ``()``, ``(N,)`` or ``(N, d1, ..., dK)``.
        weight: Factor for each class, ``(C,)``.
        size_average: Deprecated, see ``reduction``.
        ignore_index: Samples with this target count neither in the loss nor in the mean.
        reduce: Deprecated, see ``reduction``.
        reduction: ``none``, ``mean`` (by the sum of the samples' weights) or ``sum``.

    Returns:
        A scalar, or the shape of ``target`` for ``none``; float32 for half inputs under autocast.

    Raises:
        IndexError: A target outside [0, C), on CPU.
        ValueError: Batch sizes differ; unknown ``reduction``.
        RuntimeError: Other shapes that do not fit; ``weight`` requires grad.
        TypeError: ``input`` or ``target`` is not a Tensor.
    """
    reduction = resolve_reduction(reduction, size_average, reduce)
    check_constant_weights("nll_loss", weight=weight)
    input_, weight_ = full_precision(input, weight)
    loss: Tensor = _nll_loss(input_, target, weight_, ignore_index, reduction)
    return loss
