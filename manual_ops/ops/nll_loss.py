"""Negative log-likelihood of log-probabilities x and class indices t.

Index convention: ``n`` runs over all samples (batch and trailing dims), ``c`` over classes.
a[n] = w[t[n]], or 0 where t[n] is the ignored index; w = 1 without class weights.

Forward:   l[n] = -a[n] x[n, t[n]]
           L = l (reduction none), sum_n l[n] (sum) or sum_n l[n] / sum_n a[n] (mean)
Backward:  dL/dx[n, c] = -r[n] a[n] (c = t[n]),  r[n] = dL/dl[n] (none), dL (sum), dL / sum a (mean)
Tangent:   l'[n] = -a[n] x'[n, t[n]], reduced alike

Only the target is saved, not the input. Source: Bishop, Pattern Recognition and Machine
Learning (2006), equation 4.108.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind, may_overwrite
from .._precision import full_precision, widen
from ._loss import refuse_grad, resolve_reduction

EXPECTS = (
    "input (N, C, d1, ..., dK) or (C,) of floating dtype, at least of one dim; target "
    "(N, d1, ..., dK) or () of int64 class indices in [0, C) or ignore_index; weight (C,)"
)


def class_dim(input: Tensor) -> int:
    """Dim of the classes: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``."""
    return 1 if input.dim() > 1 else 0


def coefficients(
    target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return ``t[n]`` made safe to index with and ``a[n]``, both of the shape of ``target``."""
    valid = target != ignore_index
    index = torch.where(valid, target, 0).long()
    if weight is None:
        return index, valid.to(dtype)
    return index, torch.where(valid, widen(weight)[index], 0)


def row_factor(grad_output: Tensor, coefficient: Tensor, reduction: str) -> Tensor:
    """Return ``r[n]``; 0 instead of 0/0 for ignored samples, as in torch."""
    if reduction != "mean":
        return grad_output
    return torch.where(coefficient == 0, 0, grad_output / coefficient.sum())


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
        ctx.input_shape, ctx.input_dtype = input.shape, input.dtype
        ctx.save_for_backward(target, weight)
        ctx.save_for_forward(target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        target, weight = ctx.saved_tensors
        wide = widen(grad_output)
        index, coefficient = coefficients(target, weight, ctx.ignore_index, wide.dtype)
        dim = 1 if len(ctx.input_shape) > 1 else 0
        values = row_factor(wide, coefficient, ctx.reduction) * -coefficient
        zeros = grad_output.new_zeros(ctx.input_shape)
        scatter = torch.Tensor.scatter_ if may_overwrite(grad_output) else torch.Tensor.scatter
        grad_input = scatter(
            zeros, dim, index.unsqueeze(dim), values.to(zeros.dtype).unsqueeze(dim)
        )
        return grad_input, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
        target, weight = ctx.saved_tensors
        wide = widen(input_tangent)
        index, coefficient = coefficients(target, weight, ctx.ignore_index, wide.dtype)
        dim = class_dim(input_tangent)
        tangent = -coefficient * wide.gather(dim, index.unsqueeze(dim)).squeeze(dim)
        if ctx.reduction != "none":
            tangent = tangent.sum()
        if ctx.reduction == "mean":
            tangent = tangent / coefficient.sum()
        return tangent.to(input_tangent.dtype)


_nll_loss = bind(_NLLLoss, EXPECTS)


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
    """
    reduction = resolve_reduction(reduction, size_average, reduce)
    refuse_grad("nll_loss", weight=weight)
    input_, weight_ = full_precision(input, weight)
    loss: Tensor = _nll_loss(input_, target, weight_, ignore_index, reduction)
    return loss
