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

The derivation stands in _normalisation.py, of which this is the case of one group with D channels
of one position. torch's own layer_norm is silently wrong in the third order of reverse mode, and
from the second on where a jvp is differentiated once more.
Source: Ba, Kiros and Hinton, Layer Normalization (2016).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._apply import bind
from .._layout import reshaped
from .._overridable import overridable
from .._precision import full_precision, widen
from ._normalisation import Groups, Normalisation, check_parameters, shaped
from ._refusal import no_tensor


def _fused(
    input: Tensor, shape: Groups, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``Normalisation.forward`` by ATen's kernel, whose own derivatives are not used."""
    if input.is_cpu:  # then it keeps the statistics in float32
        weight = None if weight is None else widen(weight)
        bias = None if bias is None else widen(bias)
    rows, values = shaped(input, (shape.samples, shape.channels)), (shape.channels,)
    weight = None if weight is None else shaped(weight, values)
    bias = None if bias is None else shaped(bias, values)
    output, mean, rstd = torch.native_layer_norm(rows, values, weight, bias, eps)
    if rows is not input:
        output = reshaped(output, input.shape)
    return output, widen(mean), widen(rstd)


_layer_norm = bind(
    Normalisation,
    "input (*, normalized_shape) of floating dtype, weight and bias of shape normalized_shape",
    _fused,
    home=__name__,
)


@overridable(torch.nn.functional.layer_norm)
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
        NotImplementedError: Integer ``input``.
        TypeError: ``normalized_shape`` is no sequence, or what should be a tensor is none.
    """
    shape = tuple(normalized_shape)
    _check(input, shape, weight, bias)
    input_, weight_, bias_ = full_precision(input, weight, bias, on_cpu=False)
    leading = input.shape[: input.dim() - len(shape)]
    rows = Groups(math.prod(leading), 1, math.prod(shape), 1)
    output: Tensor
    output, _mean, _rstd = _layer_norm(input_, rows, weight_, bias_, eps)
    return output


def _check(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> None:
    if not isinstance(input, Tensor):
        raise no_tensor("layer_norm", input=input)
    if not shape:
        raise RuntimeError("layer_norm: expected normalized_shape of at least one dim, got ()")
    if tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"layer_norm: expected input with shape (*, {', '.join(map(str, shape))}) for "
            f"normalized_shape={shape}, got {tuple(input.shape)}"
        )
    check_parameters("layer_norm", f"for normalized_shape={shape}", shape, weight, bias)
