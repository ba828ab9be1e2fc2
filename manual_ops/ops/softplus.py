"""Smooth rectifier with sharpness ``b``.

Forward:   y = log(1 + exp(b x)) / b,  and y = x where b x > threshold
Backward:  dL/dx = dL/dy * sigmoid(b x),  and dL/dy where b x > threshold
Tangent:   y' = x' * sigmoid(b x),  and x' where b x > threshold

From dy/dx = b exp(b x) / (1 + exp(b x)) / b = sigmoid(b x). Above the threshold, where exp could
overflow, the function is taken to be the identity, as in torch; at the default of 20 it is that to
the rounding of float32 (log(1 + exp(20)) is 2e-9 more than 20).
Source: Dugas et al., Incorporating Second-Order Functional Knowledge (2001).
"""

import math

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._overridable import overridable
from .._precision import accumulate_wide, full_precision


def _slope(input: Tensor, beta: float, threshold: float, out: Tensor | None = None) -> Tensor:
    scaled = input if beta == 1 else input * beta
    slope = torch.sigmoid(scaled, out=out)
    if threshold < -math.log(torch.finfo(slope.dtype).eps / 4):  # else it is 1 to rounding there
        # the larger of the slope and 0 or 1: torch.where is slower on CPU
        slope = torch.maximum(slope, (scaled > threshold).to(slope.dtype), out=out)
    return slope


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor, beta: float, threshold: float) -> Tensor:
    return _slope(input, beta, threshold) * tangent


@accumulate_wide
def _in_place(
    tangent: Tensor, input: Tensor, beta: float, threshold: float, *, out: Tensor
) -> Tensor:
    return _slope(input, beta, threshold, out).mul_(tangent)


_softplus = bind_pointwise(torch.nn.functional.softplus, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.softplus)
def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """Apply ``log(1 + exp(beta x)) / beta``; drop-in for :func:`torch.nn.functional.softplus`.

    Args:
        input: Any shape, floating dtype.
        beta: Sharpness; the function tends to ``max(x, 0)`` as it grows.
        threshold: Where ``beta * x`` exceeds this the function is the identity.

    Returns:
        Same shape as ``input``, non-negative; float32 for half inputs under CUDA autocast.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
    """
    (input_,) = full_precision(input, on_cpu=False)
    output: Tensor = _softplus(input_, beta, threshold)
    return output
