"""Softmax cross-entropy of logits.

Index convention: ``n`` runs over all samples (batch and trailing dims), ``c`` over the C classes.
x logits, p = softmax(x), lse[n] = log sum_c exp(x[n, c]), w class weights (1 without), e label
smoothing. m[n, c] is the factor of -log p[n, c] in the loss. It comes from probabilities q, or from
an index t, one-hot d:

           m[n, c] = w[c] ((1 - e) q[n, c] + e / C)                probabilities
           m[n, c] = (1 - e) a[n] d[n, c] + (e / C) w[c] z[n]      index; a as in nll_loss.py
           d[n, c] = 1 if c = t[n] else 0,  z[n] = 0 if t[n] is the ignored index else 1

Forward:   l[n] = -sum_c m[n, c] log p[n, c] = sum_c m[n, c] (lse[n] - x[n, c])
           y = l (reduction none), sum_n l[n] (sum) or (sum_n l[n]) / D (mean)
Backward:  dL/dx[n, c] = r[n] (p[n, c] sum_k m[n, k] - m[n, c])
           dL/dq[n, c] = -r[n] w[c] (1 - e) log p[n, c]
           dL/dw[c]    = -sum_n r[n] ((1 - e) q[n, c] + e / C) log p[n, c]
           r[n] = dL/dy[n] (none), dL/dy (sum) or dL/dy / D (mean)
Tangent:   l'[n] = sum_c (m[n, c] (sum_k p[n, k] x'[n, k] - x'[n, c]) - m'[n, c] log p[n, c]),
           reduced like l; m' = w' ((1 - e) q + e / C) + w (1 - e) q' for probabilities, else 0

D is the number of samples where targets are probabilities, and sum_n a[n] where they are indices.
From d lse/dx[c] = p[c]. Nothing overflows, because log p is formed from x - max x. The logits
are saved, and p is computed again from them: as fast as reading a saved log p, every further
derivative is exact, and no second tensor of their size outlives the forward pass.
Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 4.109; Szegedy et al.,
Rethinking the Inception Architecture (2016), section 7, for label smoothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind
from .._fuse import fusible
from .._modes import may_overwrite
from .._overridable import overridable
from .._precision import full_precision, widen
from ._loss import check_constant_weights, resolve_reduction
from ._refusal import no_tensor
from .nll_loss import (
    EXPECTS,
    class_dim,
    common_factor,
    divisor_of_mean,
    is_counted,
    sample_factors,
)


def index_losses(
    log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> Tensor:
    """Return l[n] for class indices, from log p; ``weight`` of the dtype of ``log_p``."""
    dim = class_dim(log_p)
    losses = torch.nn.functional.nll_loss(
        log_p, target, weight, ignore_index=ignore_index, reduction="none"
    )
    if not smoothing:
        return losses
    everywhere = (log_p if weight is None else log_p * _along(dim, weight, log_p)).sum(dim)
    valid = is_counted(target, ignore_index)
    share = smoothing / max(log_p.shape[dim], 1)
    return (1 - smoothing) * losses - torch.where(valid, share * everywhere, 0)


def index_slope(
    p: Tensor,
    dim: int,
    factors: Sequence[Tensor],
    weight: Tensor | None,
    smoothing: float,
    *,
    inplace: bool,
) -> Tensor:
    """Return ``r[n] dl/dx[n, c]`` for class indices.

    Args:
        p: softmax(x), float32 or wider.
        dim: That of the classes.
        factors: t, r and r a, as ``sample_factors`` returns them.
        weight: Factor for each class.
        smoothing: Label smoothing.
        inplace: Work in ``p``.
    """
    index, r, r_a = factors
    at_target = ((1 - smoothing) * r_a if smoothing else r_a).unsqueeze(dim)
    mass = at_target
    if smoothing:  # the share of each class, before its weight
        spread = (smoothing / max(p.shape[dim], 1) * r).unsqueeze(dim)
        mass = at_target + spread * (p.shape[dim] if weight is None else widen(weight).sum())
    if inplace:
        slope = p.mul_(mass).scatter_add_(dim, index.unsqueeze(dim), -at_target)
    else:
        slope = (p * mass).scatter_add(dim, index.unsqueeze(dim), -at_target)
    if smoothing:
        share = spread if weight is None else spread * _along(dim, widen(weight), p)
        slope = slope.sub_(share) if inplace else slope - share
    return slope


def common_slope(p: Tensor, dim: int, target: Tensor, factor: float) -> Tensor:
    """Return ``r[n] dl/dx[n, c]`` in ``p``, without smoothing, where ``common_factor`` gives r."""
    return p.scatter_(dim, target.long().unsqueeze(dim), -1, reduce="add").mul_(factor)


@fusible
def _index_slope(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
) -> Tensor:
    """Return ``r[n] dl/dx[n, c]``; ``grad_output`` is dL/dl[n] or, of a reduced loss, dL."""
    if 0 in input.shape:  # no class, and no place for the index that stands for ignored
        return torch.zeros_like(input)
    dim = class_dim(input)
    p = torch.softmax(widen(input), dim)
    settings = target, weight, ignore_index, reduction
    factor = None if smoothing else common_factor(grad_output, *settings)
    if factor is not None:
        return common_slope(p, dim, target, factor).to(input.dtype)
    factors = sample_factors(widen(grad_output), *settings)
    inplace = may_overwrite(grad_output)
    return index_slope(p, dim, factors, weight, smoothing, inplace=inplace).to(input.dtype)


class _IndexCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        smoothing: float,
    ) -> Tensor:
        if not smoothing:
            loss = torch.nn.functional.cross_entropy(
                input, target, weight, ignore_index=ignore_index, reduction=reduction
            )
            # Of K-dim targets it is a view, which a Function's caller could not change in place.
            return loss.clone() if loss.dim() > 1 else loss
        w = None if weight is None else widen(weight)
        log_p = torch.log_softmax(widen(input), class_dim(input))
        loss = index_losses(log_p, target, w, ignore_index, smoothing)
        if reduction == "mean":
            loss = loss.sum() / divisor_of_mean(target, w, ignore_index)
        elif reduction == "sum":
            loss = loss.sum()
        return loss.to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, *ctx.settings = inputs
        ctx.save_for_backward(input, target, weight)
        ctx.save_for_forward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_input = _index_slope(grad_output, *ctx.saved_tensors, *ctx.settings)
        return grad_input, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_tangent: Tensor, *_: None) -> Tensor:
        input, target, weight = ctx.saved_tensors
        _, reduction, _ = ctx.settings
        slope: Tensor = _index_slope(input.new_ones(()), input, target, weight, *ctx.settings)
        tangent = (slope * input_tangent).sum(class_dim(input))
        return tangent if reduction == "none" else tangent.sum()


class _ProbabilityCrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
    ) -> Tensor:
        return torch.nn.functional.cross_entropy(
            input, target, weight, reduction=reduction, label_smoothing=smoothing
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, weight, ctx.reduction, ctx.smoothing = inputs
        needs_input, _, needs_weight, *_ = ctx.needs_input_grad
        # dl/dq does not depend on q
        ctx.save_for_backward(input, target if needs_input or needs_weight else None, weight)
        ctx.save_for_forward(input, target, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        needs_input, needs_target, needs_weight, *_ = ctx.needs_input_grad
        x, dim = widen(input), class_dim(input)
        scale = None if weight is None else _along(dim, widen(weight), x)
        factor = widen(grad_output)
        if ctx.reduction == "mean":
            factor = factor / _samples(x, dim)
        if ctx.reduction == "none":
            factor = factor.unsqueeze(dim)
        grad_input = grad_target = grad_weight = None
        if needs_input or needs_weight:
            smoothed = _smoothed(target, ctx.smoothing, dim)
        if needs_target or needs_weight:
            r_log_p = factor * torch.log_softmax(x, dim)
        if needs_input:
            mass = smoothed if scale is None else smoothed * scale
            grad_input = _probability_slope(factor, x, mass, dim).to(input.dtype)
        if needs_target:
            grad_target = (ctx.smoothing - 1) * r_log_p
            if scale is not None:
                grad_target = grad_target * scale
        if needs_weight:
            grad_weight = _sum_but(dim, -smoothed * r_log_p)
        return grad_input, grad_target, grad_weight, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor,
        target_tangent: Tensor,
        weight_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        input, target, weight = ctx.saved_tensors
        dim = class_dim(input)
        smoothed = _smoothed(target, ctx.smoothing, dim)
        scale = 1 if weight is None else _along(dim, widen(weight), input)
        log_p = torch.log_softmax(widen(input), dim)
        mass = scale * smoothed
        slope = log_p.exp() * mass.sum(dim, keepdim=True) - mass
        tangent = slope * input_tangent - (1 - ctx.smoothing) * scale * log_p * target_tangent
        if weight_tangent is not None:
            tangent = tangent - smoothed * log_p * _along(dim, weight_tangent, input)
        rows: Tensor = tangent.sum(dim).to(input.dtype)
        if ctx.reduction == "none":
            return rows
        return rows.sum() / (_samples(input, dim) if ctx.reduction == "mean" else 1)


@fusible
def _probability_slope(factor: Tensor, x: Tensor, mass: Tensor, dim: int) -> Tensor:
    slope, total = torch.softmax(x, dim), mass.sum(dim, keepdim=True)
    if may_overwrite(factor):
        return slope.mul_(total).sub_(mass).mul_(factor)
    return (slope * total - mass) * factor


def _smoothed(target: Tensor, smoothing: float, dim: int) -> Tensor:
    wide = widen(target)
    return wide * (1 - smoothing) + smoothing / max(target.shape[dim], 1) if smoothing else wide


def _samples(input: Tensor, dim: int) -> int:
    return max(input.numel() // max(input.shape[dim], 1), 1)


def _along(dim: int, classes: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(C,)`` to broadcast along ``dim`` of ``like``."""
    return classes.reshape(-1, *(1 for _ in range(like.dim() - dim - 1)))


def _sum_but(dim: int, x: Tensor) -> Tensor:
    others = [d for d in range(x.dim()) if d != dim]
    return x.sum(others) if others else x


_index_cross_entropy = bind(_IndexCrossEntropy, EXPECTS + "; label_smoothing in [0, 1]")
_probability_cross_entropy = bind(
    _ProbabilityCrossEntropy,
    "input and target (N, C, d1, ..., dK) or (C,) of one shape, weight (C,), "
    "label_smoothing in [0, 1], and no ignore_index",
)


@overridable(torch.nn.functional.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of logits; drop-in for :func:`torch.nn.functional.cross_entropy`.

    Args:
        input: Logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``; finite values of any size
            give a finite loss and gradient.
        target: Class indices in [0, C) of shape ``()``, ``(N,)`` or ``(N, d1, ..., dK)``; or
            probabilities of the shape and kind of ``input``.
        weight: Factor for each class, ``(C,)``.
        size_average: Deprecated, see ``reduction``.
        ignore_index: Samples with this index count neither in the loss nor in the mean; only
            for class indices.
        reduce: Deprecated, see ``reduction``.
        reduction: ``none``, ``mean`` (by the sum of the samples' weights; for probabilities by
            their number) or ``sum``.
        label_smoothing: Share in [0, 1] of the target spread evenly over all classes.

    Returns:
        A scalar, or the shape of ``target`` without the class dim for ``none``; float32 for half
        inputs under autocast.

    Raises:
        IndexError: A class index outside [0, C), on CPU.
        ValueError: Batch sizes differ; unknown ``reduction``.
        RuntimeError: Other shapes or dtypes that do not fit; ``label_smoothing`` outside [0, 1];
            ``weight`` of class indices requires grad.
        TypeError: ``input`` or ``target`` is not a Tensor.
    """
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        raise no_tensor("cross_entropy", input=input, target=target)
    reduction = resolve_reduction(reduction, size_average, reduce)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    input_, weight_ = full_precision(input, weight)
    loss: Tensor
    if target.shape == input.shape and target.is_floating_point():
        if ignore_index >= 0:
            raise RuntimeError(
                "ignore_index is not supported for floating point target (class probabilities), "
                f"got {ignore_index}"
            )
        (target,) = full_precision(target)
        loss = _probability_cross_entropy(input_, target, weight_, reduction, label_smoothing)
    else:
        check_constant_weights("cross_entropy with class indices", weight=weight)
        loss = _index_cross_entropy(
            input_, target, weight_, ignore_index, reduction, label_smoothing
        )
    return loss
