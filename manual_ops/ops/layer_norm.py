"""Layer normalisation over the trailing dims.

Index convention: ``r`` row (all leading dims), ``i`` the D positions of a row (all normalised
dims). m[r], v[r] mean and variance, s[r] = 1 / sqrt(v[r] + eps), h = (x - m) s the normalised
input, w weight (1 if None), b bias (0 if None), g = dL/dy.

Forward:   y[r, i] = h[r, i] w[i] + b[i]
           m[r] = sum_i x[r, i] / D,  v[r] = sum_i (x[r, i] - m[r])^2 / D
Backward:  dL/db[i]    = sum_r g[r, i]
           dL/dw[i]    = sum_r g[r, i] h[r, i]
           dL/dx[r, i] = s (g w - sum_j g[r, j] w[j] / D - h[r, i] sum_j g[r, j] w[j] h[r, j] / D)
Tangent:   m' = sum_i x'[r, i] / D,  s' = -s^2 sum_i h[r, i] x'[r, i] / D
           h' = s (x' - m') + (x - m) s',  y' = h' w + h w' + b'

Derivation of dL/dx: dm/dx[i] = 1/D, ds/dx[i] = -s^3 (x[i] - m)/D = -s^2 h[i]/D, and so
dh[j]/dx[i] = s (delta_ij - 1/D) - s h[j] h[i]/D; multiply by g[j] w[j] and sum over j.

Second and higher orders: m and s are computed in forward and used in backward. They are therefore
outputs of the Function, and what reaches them as cotangents is passed on:
           dL/dx[r, i] += dL/dm / D - dL/ds s^2 h[r, i] / D
torch's own layer_norm is silently wrong from the third order on.
Source: Ba, Kiros and Hinton, Layer Normalization (2016).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._apply import bind, may_overwrite
from .._blocks import block_length
from .._precision import full_precision, widen


class _LayerNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        normalized_shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = widen(input)
        inner = _inner(normalized_shape)
        variance, mean = torch.var_mean(x, inner, correction=0, keepdim=True)
        rstd = torch.rsqrt(variance + eps)
        output = (x - mean) * rstd
        if weight is not None:
            output = output * weight
        if bias is not None:
            output = output + bias
        return output.to(input.dtype), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.normalized_shape, weight, _bias, _eps = inputs
        _output, mean, rstd = output
        needs_input, _, needs_weight, *_ = ctx.needs_input_grad
        centred = needs_input or needs_weight
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
        g, x, m, s, through_mean, through_rstd = (
            _as_rows(t, len(ctx.normalized_shape))
            for t in (grad_output, input, mean, rstd, grad_mean, grad_rstd)
        )
        if g is not None and x is None:
            grad_bias = widen(g).sum(0)
        elif g is not None:
            w = None if weight is None else weight.reshape(x.shape[1])
            needs = (needs_input, needs_weight, needs_bias)
            evaluate = _gradients_by_blocks if may_overwrite(g) else _gradients
            grad_input, grad_weight, grad_bias = evaluate(g, x, m, s, w, needs)
        if needs_input:
            if through_rstd is not None:
                term = -through_rstd * s**3 * (widen(x) - m) / x.shape[1]
                grad_input = term if grad_input is None else grad_input + term
            if through_mean is not None:
                term = (through_mean / x.shape[1]).expand(x.shape)
                grad_input = term if grad_input is None else grad_input + term
            if grad_input is not None:
                grad_input = grad_input.to(input.dtype).reshape(input.shape)
        grad_weight, grad_bias = (
            None if t is None else t.reshape(ctx.normalized_shape) for t in (grad_weight, grad_bias)
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
        input, weight, mean, rstd = ctx.saved_tensors
        x = widen(input)
        x_tangent = torch.zeros_like(x) if input_tangent is None else widen(input_tangent)
        inner = _inner(ctx.normalized_shape)
        centred = x - mean
        mean_tangent = x_tangent.mean(inner, keepdim=True)
        rstd_tangent = -(rstd**3) * (centred * x_tangent).mean(inner, keepdim=True)
        tangent = (x_tangent - mean_tangent) * rstd + centred * rstd_tangent
        if weight is not None:
            tangent = tangent * weight
        if weight_tangent is not None:
            tangent = tangent + centred * rstd * weight_tangent
        if bias_tangent is not None:
            tangent = tangent + bias_tangent
        return tangent.to(input.dtype), mean_tangent, rstd_tangent


def _inner(normalized_shape: tuple[int, ...]) -> list[int]:
    return [-1 - i for i in range(len(normalized_shape))]


def _as_rows(x: Any, dims: int) -> Any:
    """Return ``x`` as ``(R, D)`` where its last ``dims`` dims are the normalised ones, or None."""
    if x is None:
        return None
    split = x.dim() - dims
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def _gradients(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x (R, D)``, weight and bias ``(D,)``, where needed."""
    needs_input, needs_weight, needs_bias = needs
    grad_input = grad_weight = grad_bias = None
    g = widen(g)
    if needs_bias:
        grad_bias = g.sum(0)
    normalised = (widen(x) - mean) * rstd
    product = g * normalised
    if needs_weight:
        grad_weight = product.sum(0)
    if needs_input:
        if weight is not None:
            g, product = g * weight, product * weight
        centred = g - g.mean(1, keepdim=True)
        slope = product.mean(1, keepdim=True)
        grad_input = torch.addcmul(centred, normalised, slope, value=-1) * rstd
    return grad_input, grad_weight, grad_bias


def _gradients_by_blocks(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in plain eager code: by blocks of rows (see ``blockwise``), and in place."""
    needs_input, needs_weight, needs_bias = needs
    grad_input = torch.empty_like(x) if needs_input else None
    weight_sums, bias_sums = [], []
    length = block_length(g)
    for i in range(0, max(len(g), 1), length):
        rows = slice(i, i + length)
        g_rows = widen(g[rows])
        normalised = (widen(x[rows]) - mean[rows]).mul_(rstd[rows])
        product = g_rows * normalised
        if needs_bias:
            bias_sums.append(g_rows.sum(0))
        if needs_weight:
            weight_sums.append(product.sum(0))
        if grad_input is not None:
            part = g_rows.clone() if weight is None else g_rows * weight
            if weight is not None:
                product.mul_(weight)
            part.sub_(part.mean(1, keepdim=True))
            part.addcmul_(normalised, product.mean(1, keepdim=True), value=-1)
            grad_input[rows] = part.mul_(rstd[rows])
    return grad_input, _total(weight_sums), _total(bias_sums)


def _total(parts: list[Tensor]) -> Tensor | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return torch.stack(parts).sum(0)


def _fused(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``_LayerNorm.forward`` by ATen's kernel, whose own derivatives are not used."""
    if input.device.type == "cpu":  # then it keeps the statistics in float32
        weight, bias = (None if t is None else widen(t) for t in (weight, bias))
    output, mean, rstd = torch.native_layer_norm(input, normalized_shape, weight, bias, eps)
    return output, widen(mean), widen(rstd)


_layer_norm = bind(
    _LayerNorm,
    "input (*, normalized_shape) of floating dtype, weight and bias of shape normalized_shape",
    _fused,
)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each row; drop-in for :func:`torch.nn.functional.layer_norm`.

    Unlike torch's, right at every order of reverse and forward mode.

    Args:
        input: ``(*, *normalized_shape)``.
        normalized_shape: The trailing dims that are normalised together, at least one.
        weight: Shape ``normalized_shape``, or ``None`` for 1.
        bias: Shape ``normalized_shape``, or ``None`` for 0.
        eps: Added to the variance.

    Returns:
        Same shape and dtype as ``input``; float32 for half inputs under CUDA autocast.

    Raises:
        RuntimeError: ``input`` does not end in ``normalized_shape``, or weight or bias has
            another shape.
        TypeError: ``normalized_shape`` is no sequence.
    """
    shape = tuple(normalized_shape)
    _check(input, shape, weight, bias)
    input_, weight_, bias_ = full_precision(input, weight, bias, on_cpu=False)
    output: Tensor
    output, _mean, _rstd = _layer_norm(input_, shape, weight_, bias_, eps)
    return output


def _check(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    if not shape:
        raise RuntimeError("layer_norm: expected normalized_shape of at least one dim, got ()")
    if tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"layer_norm: expected input with shape (*, {', '.join(map(str, shape))}) for "
            f"normalized_shape={shape}, got {tuple(input.shape)}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RuntimeError(
                f"layer_norm: expected {name} of shape normalized_shape={shape}, "
                f"got {tuple(tensor.shape)}"
            )
