"""Group normalisation: each sample's channels are normalised in groups.

Index convention: ``n`` sample, ``G`` group, ``c`` channel, ``p`` position; a group has M
values, all positions of its channels. m[n, G], v[n, G] mean and variance, s = 1 / sqrt(v + eps),
h = (x - m) s the normalised input, w weight (1 if None), b bias (0 if None), g = dL/dy.

Forward:   y[n, c, p] = h[n, c, p] w[c] + b[c]
           m[n, G] = sum_{c in G, p} x[n, c, p] / M,  v[n, G] = sum (x - m)^2 / M
Backward:  dL/db[c] = sum_n A[n, c],  A[n, c] = sum_p g[n, c, p]
           dL/dw[c] = sum_n B[n, c],  B[n, c] = sum_p g[n, c, p] h[n, c, p]
           dL/dx[n, c, p] = s (g w - sum_{c in G} w A / M - h sum_{c in G} w B / M)
Tangent:   m' = sum x' / M,  s' = -s^2 sum h x' / M
           h' = s (x' - m') + (x - m) s',  y' = h' w + h w' + b'

dL/dx is that of layer_norm, where the derivation stands, for the M values of a group; the sums
over positions serve all three gradients. m and s are differentiable outputs of the Function, as
in layer_norm and for the same reason:
           dL/dx += dL/dm / M - dL/ds s^2 h / M
Source: Wu and He, Group Normalization (2018), section 3.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind, may_overwrite
from .._blocks import block_length
from .._layout import is_channels_last, laid_out
from .._precision import full_precision, widen


class _GroupNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = widen(_as_groups(input, groups))
        variance, mean = torch.var_mean(x, (-2, -1), correction=0)
        rstd = torch.rsqrt(variance + eps)
        output = (x - _of_group(mean)) * _of_group(rstd)
        if weight is not None:
            output = output * _of_channel(weight, groups)
        if bias is not None:
            output = output + _of_channel(bias, groups)
        return output.to(input.dtype).reshape(input.shape), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.groups, weight, _bias, _eps = inputs
        _output, mean, rstd = output
        needs_input, _, needs_weight, *_ = ctx.needs_input_grad
        centred = needs_input or needs_weight
        ctx.channels_last = is_channels_last(input)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            input if centred else None,
            weight if needs_input else None,
            mean if centred else None,
            rstd if centred else None,
        )
        ctx.save_for_forward(input, weight, mean, rstd)

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_mean: Tensor | None,
        grad_rstd: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        input, weight, mean, rstd = ctx.saved_tensors
        needs_input, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        x: Any = None if input is None else _as_groups(input, ctx.groups)
        g: Any = None if grad_output is None else _as_groups(grad_output, ctx.groups)
        if g is not None and x is None:
            grad_bias = widen(g).sum((0, -1)).reshape(-1)
        elif g is not None:
            w = None if weight is None else _of_channel(weight, ctx.groups)
            needs = (needs_input, needs_weight, needs_bias)
            evaluate = _gradients_by_blocks if may_overwrite(g) else _gradients
            grad_input, grad_weight, grad_bias = evaluate(g, x, mean, rstd, w, needs)
        if needs_input:
            count = x.shape[-2] * x.shape[-1]
            if grad_rstd is not None:
                centred = widen(x) - _of_group(mean)
                term = centred * _of_group(-grad_rstd * rstd**3 / count)
                grad_input = term if grad_input is None else grad_input + term
            if grad_mean is not None:
                term = _of_group(grad_mean / count).expand(x.shape)
                grad_input = term if grad_input is None else grad_input + term
            if grad_input is not None:
                grad_input = grad_input.to(input.dtype).reshape(input.shape)
                grad_input = laid_out(grad_input, ctx.channels_last)
        return grad_input, None, grad_weight, grad_bias, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        _groups: None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        _eps: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        input, weight, mean, rstd = ctx.saved_tensors
        x = widen(_as_groups(input, ctx.groups))
        x_tangent = torch.zeros_like(x)
        if input_tangent is not None:
            x_tangent = widen(_as_groups(input_tangent, ctx.groups))
        centred = x - _of_group(mean)
        mean_tangent = x_tangent.mean((-2, -1))
        rstd_tangent = -(rstd**3) * (centred * x_tangent).mean((-2, -1))
        tangent = (x_tangent - _of_group(mean_tangent)) * _of_group(rstd)
        tangent = tangent + centred * _of_group(rstd_tangent)
        if weight is not None:
            tangent = tangent * _of_channel(weight, ctx.groups)
        if weight_tangent is not None:
            tangent = tangent + centred * _of_group(rstd) * _of_channel(weight_tangent, ctx.groups)
        if bias_tangent is not None:
            tangent = tangent + _of_channel(bias_tangent, ctx.groups)
        return tangent.to(input.dtype).reshape(input.shape), mean_tangent, rstd_tangent


def _as_groups(x: Tensor, groups: int) -> Tensor:
    """Return ``(N, C, *)`` as ``(N, groups, C / groups, positions)``."""
    n, channels, *positions = x.shape
    return x.reshape(n, groups, channels // groups, math.prod(positions))


def _of_group(statistic: Tensor) -> Tensor:
    """Let ``(N, groups)`` broadcast over the channels and positions of a group."""
    return statistic[..., None, None]


def _of_channel(parameter: Tensor, groups: int) -> Tensor:
    """Let ``(C,)`` broadcast over samples and positions."""
    return parameter.reshape(groups, parameter.shape[0] // groups, 1)


def _gradients(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x (N, groups, channels, positions)`` and both parameters."""
    needs_input, needs_weight, needs_bias = needs
    grad_input = grad_weight = grad_bias = None
    g = widen(g)
    if needs_input or needs_bias:
        sums = g.sum(-1, keepdim=True)
    s, centred = _of_group(rstd), widen(x) - _of_group(mean)
    products = (g * centred).sum(-1, keepdim=True) * s
    if needs_weight:
        grad_weight = products.sum(0).reshape(-1)
    if needs_bias:
        grad_bias = sums.sum(0).reshape(-1)
    if needs_input:
        # dL/dx = scale g + slope (x - m) + shift, with one factor for each channel or group
        scale = s
        if weight is not None:
            scale, sums, products = s * weight, sums * weight, products * weight
        count = x.shape[-2] * x.shape[-1]
        slope = -s * s * products.sum(-2, keepdim=True) / count
        shift = -s * sums.sum(-2, keepdim=True) / count
        grad_input = torch.addcmul(torch.addcmul(shift, centred, slope), g, scale)
    return grad_input, grad_weight, grad_bias


def _gradients_by_blocks(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in plain eager code, by blocks of samples: see ``blockwise``."""
    length = block_length(g)
    if length >= len(g):
        return _gradients(g, x, mean, rstd, weight, needs)
    grad_input = torch.empty_like(x) if needs[0] else None
    parts = []
    for i in range(0, len(g), length):
        block = slice(i, i + length)
        part, *of_parameters = _gradients(
            g[block], x[block], mean[block], rstd[block], weight, needs
        )
        if grad_input is not None and part is not None:
            grad_input[block] = part
        parts.append(of_parameters)
    grad_weight, grad_bias = (
        None if some[0] is None else torch.stack(some).sum(0) for some in zip(*parts, strict=True)
    )
    return grad_input, grad_weight, grad_bias


def _fused(
    input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``_GroupNorm.forward`` by ATen's kernel, whose own derivatives are not used."""
    if input.device.type == "cpu":  # then it keeps the statistics in float32
        weight, bias = (None if t is None else widen(t) for t in (weight, bias))
    n, channels, *positions = input.shape
    input = laid_out(input, is_channels_last(input))
    output, mean, rstd = torch.native_group_norm(
        input, weight, bias, n, channels, math.prod(positions), groups, eps
    )
    return output, widen(mean), widen(rstd)


_group_norm = bind(
    _GroupNorm,
    "input (N, C, *) of floating dtype, num_groups that divides C, weight and bias (C,)",
    _fused,
)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise groups of channels; drop-in for :func:`torch.nn.functional.group_norm`.

    Args:
        input: ``(N, C, *)``, ``*`` any number of dims including none.
        num_groups: Number of groups; divides C.
        weight: ``(C,)`` or ``None`` for 1.
        bias: ``(C,)`` or ``None`` for 0.
        eps: Added to the variance.

    Returns:
        Same shape, dtype and memory format as ``input``; float32 for half inputs under CUDA
        autocast.

    Raises:
        ValueError: One sample with one value in each group.
        RuntimeError: ``num_groups`` does not divide C, or a parameter is not of shape ``(C,)``.
        ZeroDivisionError: ``num_groups`` is 0.
        NotImplementedError: Integer ``input``.
    """
    _check(input, num_groups, weight, bias)
    input_, weight_, bias_ = full_precision(input, weight, bias, on_cpu=False)
    output: Tensor
    output, _mean, _rstd = _group_norm(input_, num_groups, weight_, bias_, eps)
    return output


def _check(input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise RuntimeError(f"group_norm: expected input (N, C, *) of at least 2 dims, got {shape}")
    if groups < 0 or shape[1] % groups:
        raise RuntimeError(
            f"group_norm: expected num_groups > 0 that divides the {shape[1]} channels of input "
            f"{shape}, got num_groups={groups}"
        )
    # As torch counts them: without dividing the positions by the number of groups
    if shape[0] * (shape[1] // groups) * math.prod(shape[2:]) == 1:
        raise ValueError(
            "group_norm: expected more than 1 value per group when training, got input size "
            f"{shape} and num_groups={groups}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != (shape[1],):
            raise RuntimeError(
                f"group_norm: expected {name} of shape ({shape[1]},) for input {shape}, "
                f"got {tuple(tensor.shape)}"
            )
