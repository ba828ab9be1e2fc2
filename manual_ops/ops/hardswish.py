"""Piecewise quadratic approximation of swish.

Forward:   y = x min(max(x + 3, 0), 6) / 6
Backward:  dL/dx = dL/dy * (0 if x <= -3 else 1 if x >= 3 else x / 3 + 1 / 2)
Tangent:   y' = x' * the same

The product rule between the kinks gives (x + 3) / 6 + x / 6. At the kinks, where the slope jumps
by 1/2, it is 0 and 1, as in torch.
Source: Howard et al., Searching for MobileNetV3 (2019), section 5.2.
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._blocks import blockwise
from .._overridable import overridable
from .._precision import accumulate_wide
from ._bits import stop


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    # threshold(-x, -3, -3/2) is -x where x < 3; else -3/2, which makes the slope 1
    slope = 0.5 - torch.threshold(-input, -3, -1.5) / 3
    return (tangent * slope).masked_fill(input <= -3, 0)


@blockwise
@accumulate_wide
def _in_place(tangent: Tensor, input: Tensor, *, out: Tensor) -> Tensor:
    minus = torch.threshold_(torch.neg(input, out=out), -3, -1.5)
    product = torch.sub(0.5, minus, alpha=1 / 3, out=out).mul_(tangent)
    return stop(product, torch.le(input, -3, out=torch.empty_like(out)), out=out)


_hardswish = bind_pointwise(torch.nn.functional.hardswish, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``x * relu6(x + 3) / 6`` elementwise; drop-in for torch's ``hardswish``.

    Args:
        input: Any shape, floating dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``. The derivative is 0 at -3 and 1 at 3, and NaN at NaN
        (torch: 1).

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    output: Tensor = _hardswish.overwriting(input) if inplace else _hardswish(input)
    return output
