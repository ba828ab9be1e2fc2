"""Normalisation of groups of values within a sample: what layer_norm and group_norm share.

Index convention: ``n`` sample, ``G`` group, ``c`` channel of the group, ``p`` position; a group has
M values, all positions of its channels. Layer normalisation is the case of one group and one
position. m[n, G], v[n, G] mean and variance, s = 1 / sqrt(v + eps), h = (x - m) s the normalised
input, w weight (1 if None), b bias (0 if None), g = dL/dy.

Forward:   y[n, G, c, p] = h[n, G, c, p] w[G, c] + b[G, c]
           m[n, G] = sum_{c, p} x[n, G, c, p] / M,  v[n, G] = sum_{c, p} (x - m)^2 / M
Backward:  dL/db[G, c] = sum_n A[n, G, c],  A[n, G, c] = sum_p g[n, G, c, p]
           dL/dw[G, c] = sum_n B[n, G, c],  B[n, G, c] = sum_p g[n, G, c, p] h[n, G, c, p]
           dL/dx[n, G, c, p] = s (g w - sum_c w A / M - h sum_c w B / M)
Tangent:   m' = sum x' / M,  s' = -s^2 sum h x' / M
           h' = s (x' - m') + (x - m) s',  y' = h' w + h w' + b'

Derivation of dL/dx, with i and j for the M values of a group: dm/dx[i] = 1/M, ds/dx[i] =
-s^3 (x[i] - m)/M = -s^2 h[i]/M, and so dh[j]/dx[i] = s (delta_ij - 1/M) - s h[j] h[i]/M; multiply
by g[j] w[j] and sum over j.

Second and higher orders: m and s are computed in forward and used in backward. They are therefore
outputs of the Function, and what reaches them as cotangents is passed on:
           dL/dx += dL/dm / M - dL/ds s^2 h / M
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._blocks import block_length, sum_of_rows
from .._fuse import fusible
from .._layout import is_channels_last, laid_out, reshaped
from .._modes import may_overwrite
from .._precision import widen
from ._refusal import no_tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Groups(NamedTuple):
    """The shape the input is given; mean and variance are taken over its last two dims."""

    samples: int
    groups: int
    channels: int  # of a group
    positions: int


class Needs(NamedTuple):
    """Which gradients are asked for."""

    input: bool
    weight: bool
    bias: bool


class Normalisation(Function):
    """Normalise groups of values, scale and shift each channel; what layer and group norm bind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, shape: Groups, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = widen(input).reshape(shape)
        variance, mean = torch.var_mean(x, (-2, -1), correction=0)
        rstd = torch.rsqrt(variance + eps)
        output = (x - _of_groups(mean)) * _of_groups(rstd)
        if weight is not None:
            output = output * _of_channels(weight, shape)
        if bias is not None:
            output = output + _of_channels(bias, shape)
        return reshaped(output.to(input.dtype), input.shape), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.shape, weight, bias, _eps = inputs
        _output, mean, rstd = output
        needs_input, _, needs_weight, *_ = ctx.needs_input_grad
        centred = needs_input or needs_weight
        ctx.channels_last = ctx.shape.positions > 1 and is_channels_last(input)
        ctx.parameter_shape = next((t.shape for t in (weight, bias) if t is not None), None)
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
        needs = Needs(*(ctx.needs_input_grad[i] for i in (0, 2, 3)))
        grad_input = grad_weight = grad_bias = None
        if grad_output is not None and input is None:
            grad_bias = widen(grad_output.reshape(ctx.shape)).sum((0, -1))
        elif grad_output is not None:
            grad_input, grad_weight, grad_bias = _evaluated(
                grad_output, input, mean, rstd, weight, ctx.shape, needs
            )
        if needs.input and not (grad_mean is None and grad_rstd is None):
            x = input.reshape(ctx.shape)
            grad_input = _through_statistics(grad_input, x, mean, rstd, grad_mean, grad_rstd)
        if grad_input is not None:
            grad_input = shaped(grad_input.to(input.dtype), input.shape)
            grad_input = laid_out(grad_input, ctx.channels_last)
        grad_weight, grad_bias = (
            None if t is None else shaped(t, ctx.parameter_shape) for t in (grad_weight, grad_bias)
        )
        return grad_input, None, grad_weight, grad_bias, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_tangent: Tensor | None,
        _shape: None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
        _eps: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        input, weight, *of_groups = ctx.saved_tensors
        mean, rstd = map(_of_groups, of_groups)
        x = widen(input).reshape(ctx.shape)
        x_tangent = torch.zeros_like(x)
        if input_tangent is not None:
            x_tangent = widen(input_tangent).reshape(ctx.shape)
        centred = x - mean
        mean_tangent = x_tangent.mean((-2, -1), keepdim=True)
        rstd_tangent = -(rstd**3) * (centred * x_tangent).mean((-2, -1), keepdim=True)
        tangent = (x_tangent - mean_tangent) * rstd + centred * rstd_tangent
        if weight is not None:
            tangent = tangent * _of_channels(weight, ctx.shape)
        if weight_tangent is not None:
            tangent = tangent + centred * rstd * _of_channels(weight_tangent, ctx.shape)
        if bias_tangent is not None:
            tangent = tangent + _of_channels(bias_tangent, ctx.shape)
        tangent = tangent.to(input.dtype).reshape(input.shape)
        return tangent, mean_tangent[..., 0, 0], rstd_tangent[..., 0, 0]


def check_parameters(
    op: str, why: str, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    """Refuse a weight or bias that is not a Tensor, or of another shape than ``shape``."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise no_tensor(op, **{name: tensor})
        if tuple(tensor.shape) != shape:
            raise RuntimeError(
                f"{op}: expected {name} of shape {shape} {why}, got {tuple(tensor.shape)}"
            )


def _of_groups(statistic: Tensor) -> Tensor:
    """Let mean or rstd ``(samples, groups)`` broadcast over channels and positions."""
    return statistic.reshape(*statistic.shape, 1, 1)


def _of_channels(parameter: Tensor, shape: Groups) -> Tensor:
    """Let a parameter broadcast over samples and positions."""
    return parameter.reshape(shape.groups, shape.channels, 1)


def shaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor.reshape(shape)``, for a small input cheaper where nothing is to be done."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _through_statistics(
    grad_input: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_mean: Tensor | None,
    grad_rstd: Tensor | None,
) -> Tensor:
    """Add what reaches mean and rstd themselves."""
    count = x.shape[-2] * x.shape[-1]
    terms = [grad_input.reshape(x.shape)] if grad_input is not None else []
    if grad_rstd is not None:
        slope = -grad_rstd * rstd**3 / count
        terms.append((widen(x) - _of_groups(mean)) * _of_groups(slope))
    if grad_mean is not None:
        terms.append(_of_groups(grad_mean / count).expand(x.shape))
    return functools.reduce(torch.add, terms)


def _evaluated(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    shape: Groups,
    needs: Needs,
) -> Gradients:
    """Compute Backward, in plain eager code by the arrangement that suits the shape."""
    if shape.groups == shape.positions == 1 and may_overwrite(grad_output):
        rows = (shape.samples, shape.channels)
        w = None if weight is None else shaped(weight, rows[1:])
        g, x = shaped(grad_output, rows), shaped(input, rows)
        return _of_rows(g, x, mean, rstd, w, needs)
    w = None if weight is None else _of_channels(weight, shape)
    g, x = grad_output.reshape(shape), input.reshape(shape)
    return _of_any_shape(g, x, _of_groups(mean), _of_groups(rstd), w, needs)


def _gradients(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: Needs,
) -> Gradients:
    """Return the gradients of ``x (N, groups, channels, positions)`` and both parameters."""
    g, centred = widen(g), widen(x) - mean
    sums = g.sum(-1, keepdim=True)
    products = (g * centred).sum(-1, keepdim=True) * rstd
    grad_input = None
    if needs.input:
        # dL/dx = scale g + slope (x - m) + shift
        scale = rstd if weight is None else rstd * weight
        count = x.shape[-2] * x.shape[-1]
        slope = -rstd * (products * scale).sum(-2, keepdim=True) / count
        shift = -(sums * scale).sum(-2, keepdim=True) / count
        grad_input = scale * g + slope * centred + shift
    return (
        grad_input,
        sum_of_rows(products) if needs.weight else None,
        sum_of_rows(sums) if needs.bias else None,
    )


def _by_blocks(
    of_block: Callable[..., Gradients],
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: Needs,
) -> Gradients:
    """Compute the gradients in plain eager code, by blocks of samples (see ``blockwise``)."""
    length = block_length(x)
    if length >= x.shape[0]:
        return of_block(widen(g), widen(x), mean, rstd, weight, needs, None)
    grad_input = torch.empty_like(x) if needs.input else None
    parts = []
    for i in range(0, len(x), length):
        block = slice(i, i + length)
        out = None if grad_input is None else grad_input[block]
        wide = out if out is not None and widen(out) is out else None
        part, *of_parameters = of_block(
            widen(g[block]), widen(x[block]), mean[block], rstd[block], weight, needs, wide
        )
        if wide is None and out is not None and part is not None:
            out.copy_(part)
        parts.append(of_parameters)
    grad_weight, grad_bias = (
        some[0] if len(some) == 1 or some[0] is None else torch.stack(some).sum(0)
        for some in zip(*parts, strict=True)
    )
    return grad_input, grad_weight, grad_bias


def _in_eager_code(g: Tensor, *args: Any) -> Gradients:
    return _by_blocks(_by_channels, g, *args) if may_overwrite(g) else _gradients(g, *args)


_of_any_shape: Callable[..., Gradients] = fusible(_gradients, _in_eager_code)


def _by_rows(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: Needs,
    out: Tensor | None,
) -> Gradients:
    """Of ``x (rows, values)``: each value of a group has a weight of its own."""
    normalised = torch.sub(x, mean).mul_(rstd)
    product = g * normalised
    grad_weight = product.sum(0) if needs.weight else None
    grad_bias = g.sum(0) if needs.bias else None
    if not needs.input:
        return None, grad_weight, grad_bias
    each = -1 / max(x.shape[1], 1)
    if weight is not None:
        g, product = torch.mul(g, weight, out=out), product.mul_(weight)
    total, slope = g.sum(1, keepdim=True), product.sum(1, keepdim=True)
    # The two sums not in one addcmul: with two of three broadcast it takes 7 times as long.
    out = normalised if out is None else out
    grad_input = torch.addcmul(g, normalised, slope, value=each, out=out)
    return grad_input.add_(total, alpha=each).mul_(rstd), grad_weight, grad_bias


def _by_channels(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: Needs,
    out: Tensor | None,
) -> Gradients:
    """Sums over positions first: they serve all three gradients, and are small."""
    centred = torch.sub(x, mean, out=out)
    products = (g * centred).sum(-1, keepdim=True).mul_(rstd)  # vecdot measured slower
    grad_weight = products.sum(0) if needs.weight else None
    if not (needs.input or needs.bias):
        return None, grad_weight, None
    sums = g.sum(-1, keepdim=True)
    grad_bias = sums.sum(0) if needs.bias else None
    if not needs.input:
        return None, grad_weight, grad_bias
    scale = rstd if weight is None else rstd * weight
    each = scale / -(x.shape[-2] * x.shape[-1])
    centred.mul_((products * each).sum(-2, keepdim=True).mul_(rstd))
    centred.add_((sums * each).sum(-2, keepdim=True))
    return centred.addcmul_(g, scale), grad_weight, grad_bias


def _rows_as_groups(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, needs: Needs
) -> Gradients:
    g, x, mean, rstd = (t.unsqueeze(1).unsqueeze(-1) for t in (g, x, mean, rstd))
    weight = None if weight is None else weight.unsqueeze(-1)
    return _gradients(g, x, mean, rstd, weight, needs)


_of_rows: Callable[..., Gradients] = fusible(
    _rows_as_groups, functools.partial(_by_blocks, _by_rows)
)
