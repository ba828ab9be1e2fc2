"""Exponential linear unit with scale ``a`` for negative inputs.

Forward:   y = x if x > 0 else a (exp(x) - 1)
Backward:  dL/dx = dL/dy * (1 if x > 0 else a exp(x))
Tangent:   y' = x' * (1 if x > 0 else a exp(x))

The derivative at 0 is ``a``, as in torch. For x <= 0 it is also y + a, but that sum cancels where
exp(x) is small, so the input is saved instead of the output.
Source: Clevert, Unterthiner and Hochreiter, Fast and Accurate Deep Network Learning by Exponential
Linear Units (2016), section 3.
"""

import math

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._blocks import blockwise
from .._overridable import overridable
from .._precision import accumulate_wide


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor, alpha: float) -> Tensor:
    slope = alpha * input.clamp(max=0).exp()
    return tangent * torch.where(input <= 0, slope, 1)  # 1 at NaN (torch: NaN or 1, by kernel)


@blockwise
@accumulate_wide
def _in_place(tangent: Tensor, input: Tensor, alpha: float, *, out: Tensor) -> Tensor:
    # As a power of 2: torch.exp is 3 times slower on CPUs where it is left to MKL. Rounding the
    # exponent costs up to 32 units in the last place, near x = -87 in float32.
    slope = torch.mul(input, math.log2(math.e), out=out).clamp_(max=0).exp2_()
    if alpha != 1:
        slope.mul_(torch.threshold_(input.sign(), 0, alpha))
    return slope.nan_to_num_(1).mul_(tangent)


_elu = bind_pointwise(torch.nn.functional.elu, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.elu)
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Apply ``x if x > 0 else alpha * (exp(x) - 1)``; drop-in for torch's ``elu``.

    Args:
        input: Any shape, floating dtype.
        alpha: Minus the limit for large negative inputs; any real number.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``. The derivative at 0 is ``alpha``, at NaN 1.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    output: Tensor = _elu.overwriting(input, alpha) if inplace else _elu(input, alpha)
    return output
