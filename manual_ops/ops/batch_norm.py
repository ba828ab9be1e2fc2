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

Derivation of dL/dx in training: dm/dx[n] = 1/N, dr/dx[n] = -r^3 (x[n] - m)/N = -r^2 h[n]/N, and
so dh[k]/dx[n] = r (delta_kn - 1/N) - r h[k] h[n]/N; multiply by w g[k] and sum over k.
In the code h = centred * r with centred = x - m; the sums are taken over centred values, since
sum g x - m sum g would cancel where m is large beside the deviation.

Second and higher orders: m and r are computed in forward and used in backward. Saved as
constants they would give a wrong second derivative that first-order checks do not notice. They
are therefore outputs of the Function, and what reaches them as cotangents is passed on:
           dL/dx[n, c] += dL/dm / N - dL/dr r^3 (x[n, c] - m) / N
Source: Ioffe and Szegedy, Batch Normalization (2015), section 3.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind, may_overwrite
from .._layout import is_channels_last, laid_out
from .._precision import widen
from ._refusal import no_tensor


class _TrainingBatchNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, n = widen(input), _positions(input)
        variance, mean = torch.var_mean(x, _over_positions(x), correction=0)
        rstd = torch.rsqrt(variance + eps)
        output = _normalised(x, mean, rstd, weight, bias).to(input.dtype)
        return output, mean, rstd, variance * (n / max(n - 1, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, _bias, _eps = inputs
        _output, mean, rstd, unbiased_variance = output
        needs_input, needs_weight, *_ = ctx.needs_input_grad
        ctx.mark_non_differentiable(unbiased_variance)  # it only feeds the running statistics
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
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        g = None if grad_output is None else widen(grad_output)
        if needs_input or needs_weight:
            centred = widen(input) - _per_channel(mean, input)
        if g is not None and (needs_input or needs_bias):
            grad_bias = g.sum(_over_positions(g))
        if g is not None and (needs_input or needs_weight):
            grad_weight = (g * centred).sum(_over_positions(g)) * rstd
        if needs_input:
            # dL/dx = scale g + slope (x - m) + shift, each of the three a number per channel
            n = _positions(input)
            slope = torch.zeros_like(rstd) if grad_rstd is None else -grad_rstd * rstd**3 / n
            shift = torch.zeros_like(mean) if grad_mean is None else grad_mean / n
            scale = None
            if g is not None:
                scale = rstd if weight is None else rstd * weight
                slope = slope - scale * rstd * grad_weight / n
                shift = shift - scale * grad_bias / n
            grad_input = _combined(scale, g, slope, centred, shift).to(input.dtype)
        return (
            grad_input,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        _eps: None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd = ctx.saved_tensors
        over = _over_positions(input)
        tangent = widen(torch.zeros_like(input) if input_tangent is None else input_tangent)
        centred = widen(input) - _per_channel(mean, input)
        mean_tangent = tangent.mean(over)
        rstd_tangent = -(rstd**3) * (centred * tangent).mean(over)
        output_tangent = _output_tangent(
            tangent,
            centred,
            rstd,
            weight,
            mean_tangent,
            rstd_tangent,
            weight_tangent,
            bias_tangent,
        )
        return output_tangent.to(input.dtype), mean_tangent, rstd_tangent, None


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
        return _normalised(widen(input), running_mean, rstd, weight, bias).to(input.dtype)

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
        input, weight, mean, variance = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        g = widen(grad_output)
        grad_input = grad_weight = grad_bias = None
        if needs_input or needs_weight:
            rstd = torch.rsqrt(widen(variance) + ctx.eps)
        if needs_input:
            scale = rstd if weight is None else rstd * weight
            grad_input = (g * _per_channel(scale, g)).to(ctx.input_dtype)
            grad_input = laid_out(grad_input, ctx.channels_last)
        if needs_weight:
            centred = widen(input) - _per_channel(mean, input)
            grad_weight = (g * centred).sum(_over_positions(g)) * rstd
        if needs_bias:
            grad_bias = g.sum(_over_positions(g))
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
        tangent = input_tangent * _per_channel(scale, input)
        if weight_tangent is not None:
            centred = input - _per_channel(mean, input)
            tangent = tangent + centred * _per_channel(rstd * weight_tangent, input)
        if bias_tangent is not None:
            tangent = tangent + _per_channel(bias_tangent, input)
        return tangent.to(input.dtype)


def _fused_training(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``_TrainingBatchNorm.forward`` by ATen's kernel, which cannot be mapped (torch.func)."""
    # With momentum 1 the kernel leaves the batch's own statistics in the running ones.
    statistics = torch.zeros(2, input.shape[1], dtype=widen(input).dtype, device=input.device)
    weight, bias = (None if t is None else widen(t) for t in (weight, bias))
    output, mean, rstd = torch.native_batch_norm(
        input, weight, bias, statistics[0], statistics[1], True, 1.0, eps
    )
    return output, mean, rstd, statistics[1]


def _fused_evaluation(
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


def _output_tangent(
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
    output_tangent = tangent - _per_channel(mean_tangent, tangent)
    output_tangent = output_tangent * _per_channel(rstd, tangent)
    output_tangent = output_tangent + centred * _per_channel(rstd_tangent, tangent)
    if weight is not None:
        output_tangent = output_tangent * _per_channel(weight, tangent)
    if weight_tangent is not None:
        output_tangent = output_tangent + centred * _per_channel(rstd * weight_tangent, tangent)
    if bias_tangent is not None:
        output_tangent = output_tangent + _per_channel(bias_tangent, tangent)
    return output_tangent


def _combined(
    scale: Tensor | None, g: Tensor | None, slope: Tensor, centred: Tensor, shift: Tensor
) -> Tensor:
    """Return scale g + slope centred + shift, in place of ``centred`` where that is allowed."""
    slope, shift = _per_channel(slope, centred), _per_channel(shift, centred)
    if g is None or scale is None:
        return torch.addcmul(shift, centred, slope)
    scale = _per_channel(scale, centred)
    if may_overwrite(g):
        # Not addcmul(shift, centred, slope): with two of three broadcast it takes 7 times as long.
        return centred.mul_(slope).add_(shift).addcmul_(g, scale)
    return torch.addcmul(torch.addcmul(shift, centred, slope), g, scale)


def _over_positions(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _positions(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)


def _per_channel(channels: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(C,)`` to broadcast along dim 1 of ``like``."""
    return channels.reshape(-1, *(1 for _ in range(like.dim() - 2)))


def _normalised(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    output = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    if weight is not None:
        output = output * _per_channel(weight, x)
    return output if bias is None else output + _per_channel(bias, x)


_EXPECTS = "input (N, C, *) of floating dtype and (C,) for everything else"
_training_batch_norm = bind(_TrainingBatchNorm, _EXPECTS, _fused_training)
_evaluation_batch_norm = bind(_EvaluationBatchNorm, _EXPECTS, _fused_evaluation)


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
        ValueError: One value per channel in training; ``eps`` not positive (training), negative.
        RuntimeError: A per-channel argument of another length than C; no running statistics in
            evaluation.
    """
    _check(input, training, eps, running_mean, running_var, weight, bias)
    if input.numel() == 0:  # no statistics: nothing to normalise by, nothing to track
        training = False
        running_mean, running_var = input.new_zeros(input.shape[1]), input.new_ones(input.shape[1])
    output: Tensor
    if not training:
        output = _evaluation_batch_norm(input, weight, bias, running_mean, running_var, eps)
        return output
    output, mean, _rstd, unbiased_variance = _training_batch_norm(input, weight, bias, eps)
    # Outside the Function: an in-place change inside it would be hidden from autograd.
    for running, batch in ((running_mean, mean), (running_var, unbiased_variance)):
        if running is not None:
            running.add_(batch.detach() - running, alpha=momentum)
    return output


def _check(input: Tensor, training: bool, eps: float, *channels: Tensor | None) -> None:
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
