"""Batch normalisation over all dims but the channels.

Index convention: ``c`` channel (dim 1), ``n`` the N positions of a channel (batch and trailing
dims). m[c], v[c] mean and variance, r[c] = 1 / sqrt(v[c] + eps), h = (x - m) r the normalised
input, w weight (1 if None), b bias (0 if None), g = dL/dy.

Forward:   y[n, c] = h[n, c] w[c] + b[c]
Training:  m[c] = sum_n x[n, c] / N,  v[c] = sum_n (x[n, c] - m[c])^2 / N
Backward:  dL/db[c]    = sum_n g[n, c]
           dL/dw[c]    = sum_n g[n, c] h[n, c]
           dL/dx[n, c] = w r (g[n, c] - dL/db / N - h[n, c] dL/dw / N)
Tangent:   m' = sum_n x' / N,  r' = -r^3 sum_n (x - m) x' / N
           y' = w (r (x' - m') + r' (x - m)) + w' h + b'
Evaluation: m and v are the running statistics, constants, so dL/dx[n, c] = w r g[n, c] and
           m' = r' = 0

Derivation of dL/dx in training, for one channel: dm/dx[n] = 1/N, dr/dx[n] = -r^3 (x[n] - m)/N =
-r^2 h[n]/N, and so dh[k]/dx[n] = r (delta_kn - 1/N) - r h[k] h[n]/N; multiply by w g[k] and sum
over k. In the code h = centred * r with centred = x - m: computed as sum g x - m sum g, the sum of
g (x - m) would lose its digits where m is large beside the deviation.

Second and higher orders: m and r are computed in forward and used in backward. Saved as
constants they would give a wrong second derivative that first-order checks do not notice. They
are therefore outputs of the Function, and what reaches them as cotangents is passed on:
           dL/dx[n, c] += dL/dm / N - dL/dr r^3 (x[n, c] - m) / N
Source: Ioffe and Szegedy, Batch Normalization (2015), section 3.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from .._apply import bind
from .._blocks import block_length, blocks
from .._fuse import fusible
from .._layout import is_channels_last, laid_out
from .._modes import may_overwrite, write_below
from .._overridable import overridable
from .._precision import widen
from ._refusal import no_tensor


class _TrainingBatchNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return y, m, r and the unbiased variance, with which the caller moves the statistics.

        The running ones and momentum are used by ``fused_training`` alone, which has the same
        signature and lets ATen's kernel move them.
        """
        x, n = widen(input), positions(input)
        variance, mean = torch.var_mean(x, over_positions(x), correction=0)
        rstd = torch.rsqrt(variance + eps)
        output = normalised(x, mean, rstd, weight, bias).to(input.dtype)
        return output, mean, rstd, variance * (n / max(n - 1, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, *_ = inputs
        _output, mean, rstd, unbiased_variance = output
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        if unbiased_variance is not None:  # it only feeds the running statistics
            ctx.mark_non_differentiable(unbiased_variance)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            input if needs_input or needs_weight else None,
            weight if needs_input else None,
            mean,
            rstd,
        )
        ctx.save_for_forward(input, weight, mean, rstd)

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_mean: Tensor | None,
        grad_rstd: Tensor | None,
        _grad_variance: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd = ctx.saved_tensors
        cotangents = (grad_output, grad_mean, grad_rstd)
        needs = ctx.needs_input_grad[:3]
        gradients = training_gradients(*cotangents, input, weight, mean, rstd, needs)
        return *gradients, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd = ctx.saved_tensors
        tangents = (input_tangent, weight_tangent, bias_tangent)
        return *training_tangents(*tangents, input, weight, mean, rstd), None


plain_training = _TrainingBatchNorm.forward


@fusible
def training_gradients(
    grad_output: Tensor | None,
    grad_mean: Tensor | None,
    grad_rstd: Tensor | None,
    input: Any,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return those gradients of input, weight and bias that ``needs`` asks for, in training."""
    needs_input, needs_weight, needs_bias = needs
    grad_input: Tensor | None = None
    grad_weight: Any = None
    grad_bias: Any = None
    centred: Tensor | None = None
    if grad_output is not None:
        grad_bias, products, centred = _sums(
            grad_output, input, mean, needs_input or needs_bias, needs_input or needs_weight
        )
        grad_weight = None if products is None else products * rstd
    if needs_input:
        # dL/dx = scale g + slope (x - m) + shift, each of the three a number per channel
        n = positions(input)
        if grad_output is None:
            scale, slope, shift = None, torch.zeros_like(rstd), torch.zeros_like(mean)
        else:
            scale = rstd if weight is None else rstd * weight
            each = scale / -n
            slope, shift = each * rstd * grad_weight, each * grad_bias
        if grad_rstd is not None:
            slope = slope - grad_rstd * rstd**3 / n
        if grad_mean is not None:
            shift = shift + grad_mean / n
        grad_input = _combined(scale, grad_output, slope, input, mean, shift, centred)
    return grad_input, grad_weight if needs_weight else None, grad_bias if needs_bias else None


def training_tangents(
    input_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y', m' and r' in training."""
    over = over_positions(input)
    tangent = widen(torch.zeros_like(input) if input_tangent is None else input_tangent)
    centred = widen(input) - per_channel(mean, input)
    mean_tangent = tangent.mean(over)
    rstd_tangent = -(rstd**3) * (centred * tangent).mean(over)
    statistics = (mean_tangent, rstd_tangent)
    output_tangent = tangent_of_output(
        tangent, centred, rstd, weight, *statistics, weight_tangent, bias_tangent
    )
    return output_tangent.to(input.dtype), *statistics


class _EvaluationBatchNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> Tensor:
        rstd = torch.rsqrt(widen(running_var) + eps)
        return normalised(widen(input), running_mean, rstd, weight, bias).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _bias, mean, variance, ctx.eps = inputs
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.input_dtype, ctx.channels_last = input.dtype, is_channels_last(input)
        ctx.save_for_backward(
            input if needs_weight else None,
            weight if needs_input else None,
            mean if needs_weight else None,
            variance if needs_input or needs_weight else None,
        )
        ctx.save_for_forward(input, weight, mean, variance)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        gradients = _evaluation_gradients(grad_output, *ctx.saved_tensors, ctx.eps, needs)
        grad_input, grad_weight, grad_bias = gradients
        if grad_input is not None:
            grad_input = laid_out(grad_input.to(ctx.input_dtype), ctx.channels_last)
        return grad_input, grad_weight, grad_bias, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        *_: Any,
    ) -> Tensor:
        input, weight, mean, variance = ctx.saved_tensors
        rstd = torch.rsqrt(widen(variance) + ctx.eps)
        scale = rstd if weight is None else rstd * weight
        tangent = input_tangent * per_channel(scale, input)
        if weight_tangent is not None:
            centred = input - per_channel(mean, input)
            tangent = tangent + centred * per_channel(rstd * weight_tangent, input)
        if bias_tangent is not None:
            tangent = tangent + per_channel(bias_tangent, input)
        return tangent.to(input.dtype)


@fusible
def _evaluation_gradients(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    variance: Any,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return those gradients of input, weight and bias that ``needs`` asks for, in evaluation."""
    needs_input, needs_weight, needs_bias = needs
    grad_input = None
    rstd: Any = torch.rsqrt(widen(variance) + eps) if needs_input or needs_weight else None
    if needs_input:
        scale = rstd if weight is None else rstd * weight
        grad_input = grad_output * per_channel(scale, grad_output)
    grad_bias, products, _ = _sums(grad_output, input, mean, needs_bias, needs_weight)
    return grad_input, None if products is None else products * rstd, grad_bias


def fused_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``_TrainingBatchNorm.forward`` by ATen's kernel, which cannot be mapped (torch.func).

    It moves the running statistics itself where it can; then there is no unbiased variance.
    """
    weight = None if weight is None else widen(weight)
    bias = None if bias is None else widen(bias)
    if _can_be_moved(running_mean, input) and _can_be_moved(running_var, input):
        output, mean, rstd = torch.native_batch_norm(
            input, weight, bias, running_mean, running_var, True, momentum, eps
        )
        # The kernel does not say so: an evaluation that saved them could not tell.
        increment_version([t for t in (running_mean, running_var) if t is not None])
        return output, mean, rstd, None
    # With momentum 1 the kernel leaves the batch's own statistics in the running ones.
    statistics = input.new_zeros(2, input.shape[1], dtype=widen(input).dtype)
    batch_mean, unbiased_variance = statistics.unbind()
    output, mean, rstd = torch.native_batch_norm(
        input, weight, bias, batch_mean, unbiased_variance, True, 1.0, eps
    )
    return output, mean, rstd, unbiased_variance


def _can_be_moved(running: Tensor | None, input: Tensor) -> bool:
    return running is None or (running.dtype == widen(input).dtype and not running.requires_grad)


def fused_evaluation(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> Tensor:
    """``_EvaluationBatchNorm.forward`` by ATen's kernel."""
    return torch.nn.functional.batch_norm(
        input, running_mean, running_var, weight, bias, training=False, eps=eps
    )


def tangent_of_output(
    tangent: Tensor,
    centred: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    mean_tangent: Tensor,
    rstd_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
) -> Tensor:
    """Return y' = w (r (x' - m') + r' (x - m)) + w' h + b'."""
    output_tangent = tangent - per_channel(mean_tangent, tangent)
    output_tangent = output_tangent * per_channel(rstd, tangent)
    output_tangent = output_tangent + centred * per_channel(rstd_tangent, tangent)
    if weight is not None:
        output_tangent = output_tangent * per_channel(weight, tangent)
    if weight_tangent is not None:
        output_tangent = output_tangent + centred * per_channel(rstd * weight_tangent, tangent)
    if bias_tangent is not None:
        output_tangent = output_tangent + per_channel(bias_tangent, tangent)
    return output_tangent


def _sums(
    g: Tensor, x: Tensor | None, mean: Tensor | None, of_g: bool, of_products: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return sum_n g and sum_n g (x - m), each if asked for, and x - m where it is at hand."""
    if not of_products or x is None or mean is None:
        return _sum(widen(g)) if of_g else None, None, None
    mean = per_channel(widen(mean), x)
    overwrite = may_overwrite(g)
    if not overwrite or block_length(x) >= len(x):
        centred = widen(x) - mean
        sum_of_g = _sum(widen(g)) if of_g else None
        return sum_of_g, _sum(widen(g) * centred), centred if overwrite else None
    room, sums, sums_of_products = None, [], []
    for g_block, x_block in blocks(g, x):
        room = torch.sub(x_block, mean, out=_part(room, x_block))
        if of_g:
            sums.append(_sum(g_block, room.dtype))
        sums_of_products.append(_sum(room.mul_(g_block)))
    total = functools.partial(functools.reduce, torch.add)
    return total(sums) if of_g else None, total(sums_of_products), None


def _combined(
    scale: Tensor | None,
    g: Tensor | None,
    slope: Tensor,
    x: Tensor,
    mean: Tensor,
    shift: Tensor,
    centred: Tensor | None,
) -> Tensor:
    """Return scale g + slope (x - m) + shift, in the dtype of ``x``; works in ``centred``."""
    slope, mean, shift = (per_channel(channels, x) for channels in (slope, mean, shift))
    if g is None or scale is None:
        return torch.addcmul(shift, widen(x) - mean, slope).to(x.dtype)
    scale = per_channel(scale, x)
    # Not addcmul(shift, room, slope): with two of three broadcast it takes 7 times as long.
    if centred is not None:
        return centred.mul_(slope).add_(shift).addcmul_(widen(g), scale).to(x.dtype)
    if not may_overwrite(g):
        combined = torch.addcmul(torch.addcmul(shift, widen(x) - mean, slope), widen(g), scale)
        return combined.to(x.dtype)
    combined, room = torch.empty_like(x), None
    for g_block, x_block, block in blocks(g, x, combined):
        room = torch.sub(x_block, mean, out=_part(room, x_block))
        torch.addcmul(room.mul_(slope).add_(shift), g_block, scale, out=block)
    return combined


def _part(room: Tensor | None, block: Tensor) -> Tensor | None:
    """Return as much of ``room`` as a block fills, which but for the last block is all of it."""
    return room if room is None or len(room) == len(block) else room[: len(block)]


def _sum(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Sum over positions: over those of each sample first, which is faster than all at once."""
    if x.dim() > 2:
        x = x.sum(over_positions(x)[1:], dtype=dtype)
    return x.sum(0, dtype=dtype)


def over_positions(x: Tensor) -> list[int]:
    """Return all dims but that of the channels."""
    return [0, *range(2, x.dim())]


def positions(x: Tensor) -> int:
    """Return N."""
    return x.numel() // max(x.shape[1], 1)


def per_channel(channels: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(C,)`` to broadcast along dim 1 of ``like``."""
    return channels.reshape(-1, *(1,) * (like.dim() - 2))


def normalised(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return ``h w + b``."""
    output = (x - per_channel(mean, x)) * per_channel(rstd, x)
    if weight is not None:
        output = output * per_channel(weight, x)
    return output if bias is None else output + per_channel(bias, x)


_EXPECTS = "input (N, C, *) of floating dtype and (C,) for everything else"
_training_batch_norm = bind(_TrainingBatchNorm, _EXPECTS, fused_training)
_evaluation_batch_norm = bind(_EvaluationBatchNorm, _EXPECTS, fused_evaluation)


@overridable(torch.nn.functional.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise every channel; drop-in for :func:`torch.nn.functional.batch_norm`.

    Unlike torch's, right at every order of reverse and forward mode, also when training.

    Args:
        input: ``(N, C, *)``, ``*`` any number of dims including none.
        running_mean: ``(C,)``. In training it is moved towards the batch's mean, in place;
            otherwise it is what is subtracted. ``None`` in training: not tracked.
        running_var: ``(C,)``, likewise with the unbiased variance.
        weight: ``(C,)`` or ``None`` for 1.
        bias: ``(C,)`` or ``None`` for 0.
        training: Normalise by the batch's own statistics.
        momentum: Share of the batch's statistics in the running ones.
        eps: Added to the variance.

    Returns:
        Same shape, dtype and memory format as ``input``.

    Raises:
        ValueError: One value per channel in training, or one running statistic without the
            other there; ``eps`` not positive in training, negative in evaluation.
        RuntimeError: A per-channel argument of another length than C; no running statistics in
            evaluation.
        TypeError: ``input`` or a per-channel argument is not a Tensor.
    """
    check(input, training, eps, running_mean, running_var, weight, bias)
    if input.numel() == 0:  # no statistics: nothing to normalise by, nothing to track
        training = False
        running_mean, running_var = input.new_zeros(input.shape[1]), input.new_ones(input.shape[1])
    output: Tensor
    if not training:
        output = _evaluation_batch_norm(input, weight, bias, running_mean, running_var, eps)
        return output
    output, mean, _rstd, unbiased_variance = _training_batch_norm(
        input, weight, bias, running_mean, running_var, momentum, eps
    )
    if unbiased_variance is not None:
        track((running_mean, running_var), (mean, unbiased_variance), momentum)
    return output


def track(
    running: tuple[Tensor | None, Tensor | None], batch: tuple[Tensor, Tensor], momentum: float
) -> None:
    """Move running statistics towards those of a batch, by the share ``momentum``.

    Outside a Function: an in-place change inside it would be hidden from autograd.
    """
    for moved, towards in zip(running, batch, strict=True):
        if moved is not None:
            # Not by their difference, which loses the smaller of the two; written at once, so that
            # what vmap refuses has changed nothing.
            write_below(moved, torch.add(momentum * towards.detach(), moved, alpha=1 - momentum))


def check(input: Tensor, training: bool, eps: float, *channels: Tensor | None) -> None:
    """Refuse what no batch norm can take; ``channels`` are the arguments of shape ``(C,)``."""
    if not isinstance(input, Tensor):
        raise no_tensor("batch_norm", input=input)
    if input.dim() < 2:
        raise RuntimeError(f"batch_norm: expected input (N, C, *), got {tuple(input.shape)}")
    if training and input.numel() == input.shape[1] > 0:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got input size {tuple(input.shape)}"
        )
    if eps < 0 or (training and eps == 0):
        bound = "positive during training" if training else "non-negative"
        raise ValueError(f"batch_norm eps must be {bound}, but got {eps}")
    if training and (channels[0] is None) != (channels[1] is None):
        raise ValueError("batch_norm: expected both running_mean and running_var, or neither")
    _check_channels(input, training, channels)


def _check_channels(input: Tensor, training: bool, channels: Sequence[Tensor | None]) -> None:
    names = ("running_mean", "running_var", "weight", "bias")
    for name, tensor in zip(names, channels, strict=True):
        if tensor is None:
            if name.startswith("running") and not training:
                raise RuntimeError(f"batch_norm: expected {name} in evaluation, got None")
        elif not isinstance(tensor, Tensor):
            raise no_tensor("batch_norm", **{name: tensor})
        elif tensor.numel() != input.shape[1]:
            raise RuntimeError(
                f"batch_norm: expected {name} to contain {input.shape[1]} elements "
                f"for input {tuple(input.shape)}, got {tuple(tensor.shape)}"
            )
