"""Gaussian error linear unit, exact and by the tanh approximation.

Exact, with the standard normal distribution function P(x) = (1 + erf(x / sqrt 2)) / 2 and its
density p(x) = exp(-x^2 / 2) / sqrt(2 pi):
Forward:   y = x P(x)
Backward:  dL/dx = dL/dy * (P(x) + x p(x))
Tangent:   y' = x' * (P(x) + x p(x))

Approximate, with u = sqrt(2 / pi) (x + 0.044715 x^3) and y = x (1 + tanh u) / 2. The sigmoid s of
2 u is (1 + tanh u) / 2, and ds/dx = s (1 - s) d(2 u)/dx:
Forward:   y = x s
Backward:  dL/dx = dL/dy * (s + x s (1 - s) d(2 u)/dx)
Tangent:   y' = x' * (s + x s (1 - s) d(2 u)/dx)

Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016), section 2.
"""

import math

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._blocks import blockwise
from .._overridable import overridable
from .._precision import accumulate_wide

# p(x) = 2 ** (_LOG2_P0 + _RATE x^2): on CPU, torch.exp is slower, 3 times so where left to MKL
_LOG2_P0 = -math.log2(2 * math.pi) / 2
_RATE = -math.log2(math.e) / 2
_LINEAR = 2 * math.sqrt(2 / math.pi)  # 2 u = _LINEAR x + _CUBIC x^3
_CUBIC = 0.044715 * _LINEAR


def _forward(input: Tensor, approximate: str) -> Tensor:
    return torch.nn.functional.gelu(input, approximate=approximate)


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        cdf = 0.5 + 0.5 * torch.erf(input * math.sqrt(0.5))
        return tangent * (cdf + input * torch.exp2(_LOG2_P0 + _RATE * input * input))
    x = input.clamp(-1e4, 1e4)  # beyond, s is 0 or 1, and the square of a larger x may overflow
    square = x * x
    s = torch.sigmoid((_LINEAR + _CUBIC * square) * x)
    return tangent * (s + x * s * (1 - s) * (_LINEAR + 3 * _CUBIC * square))


def _exact_in_place(tangent: Tensor, input: Tensor, out: Tensor) -> Tensor:
    log2_p0 = input.new_full((), _LOG2_P0)
    density = torch.addcmul(log2_p0, input, input, value=_RATE, out=out).exp2_()
    # P as y / x: the kernel of y is twice as fast as torch.erf. Not of 0, nor of a denormal number,
    # whose product with P has lost its digits: there P is 1/2.
    normal = torch.nn.functional.hardshrink(input, torch.finfo(input.dtype).tiny)
    cdf = torch.nn.functional.gelu(normal).div_(normal).nan_to_num_(0.5)
    return torch.addcmul(cdf, input, density, out=out).mul_(tangent)


def _tanh_in_place(tangent: Tensor, input: Tensor, out: Tensor) -> Tensor:
    linear = input.new_full((), _LINEAR)
    twice_u = torch.addcmul(linear, input, input, value=_CUBIC, out=out).mul_(input)
    s = torch.sigmoid(twice_u.clamp_(-1e4, 1e4))  # 0 or 1 at the bounds, where rate stays finite
    rate = twice_u.sub_(input, alpha=2 / 3 * _LINEAR)  # x d(2 u)/dx = 3 (2 u) - 2 _LINEAR x, by 3
    rate.addcmul_(rate, s, value=-1)
    return torch.addcmul(s, s, rate, value=3, out=out).mul_(tangent)


@blockwise
@accumulate_wide
def _in_place(tangent: Tensor, input: Tensor, approximate: str, *, out: Tensor) -> Tensor:
    evaluate = _exact_in_place if approximate == "none" else _tanh_in_place
    return evaluate(tangent, input, out)


_gelu = bind_pointwise(_forward, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.gelu)
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """Apply ``x P(x)``, P the normal distribution's; drop-in for :func:`torch.nn.functional.gelu`.

    Args:
        input: Any shape, floating dtype.
        approximate: ``none``, or ``tanh`` for the approximation of P by a tanh.

    Returns:
        Same shape and dtype as ``input``.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
        RuntimeError: Unknown ``approximate``.
    """
    output: Tensor = _gelu(input, approximate)
    return output
