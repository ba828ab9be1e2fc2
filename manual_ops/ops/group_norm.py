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

The derivation stands in _normalisation.py.
Source: Wu and He, Group Normalization (2018), section 3.
"""

import math

import torch
from torch import Tensor

from .._apply import bind
from .._layout import is_channels_last, laid_out
from .._overridable import overridable
from .._precision import full_precision, widen
from ._normalisation import Groups, Normalisation, check_parameters


def _fused(
    input: Tensor, shape: Groups, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``Normalisation.forward`` by ATen's kernel, whose own derivatives are not used."""
    if input.is_cpu:  # then it keeps the statistics in float32
        weight = None if weight is None else widen(weight)
        bias = None if bias is None else widen(bias)
    input = laid_out(input, is_channels_last(input))
    # Torch 2.13 reads strided parameters as if contiguous, and takes no bias without a weight.
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    samples, groups, channels, positions = shape
    output, mean, rstd = torch.native_group_norm(
        input, weight, bias, samples, groups * channels, positions, groups, eps
    )
    return output, widen(mean), widen(rstd)


_group_norm = bind(
    Normalisation,
    "input (N, C, *) of floating dtype, num_groups that divides C, weight and bias (C,)",
    _fused,
    home=__name__,
)


@overridable(torch.nn.functional.group_norm)
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
        TypeError: ``weight`` or ``bias`` is not a Tensor.
    """
    _check(input, num_groups, weight, bias)
    input_, weight_, bias_ = full_precision(input, weight, bias, on_cpu=False)
    samples, channels, *positions = input.shape
    shape = Groups(samples, num_groups, channels // num_groups, math.prod(positions))
    output: Tensor
    output, _mean, _rstd = _group_norm(input_, shape, weight_, bias_, eps)
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
    # As torch counts, over the whole batch: one value per group is refused in a batch of one alone.
    if shape[0] * (shape[1] // groups) * math.prod(shape[2:]) == 1:
        raise ValueError(
            "group_norm: expected more than 1 value per group when training, got input size "
            f"{shape} and num_groups={groups}"
        )
    check_parameters("group_norm", f"for input {shape}", (shape[1],), weight, bias)
