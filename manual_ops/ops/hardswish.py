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

from .._apply import bind_pointwise, may_overwrite
from .._blocks import blockwise
from .._precision import accumulate_wide
from ._gate import closed


@blockwise
@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    # threshold(z, -1, -1/2) is z where z > -1, else -1/2 (torch.where: 30 times slower on CPU)
    not_above = torch.nn.functional.threshold(input / -3, -1, -0.5).neg()  # x / 3, 1/2 from 3 on
    slope = torch.nn.functional.threshold(not_above, -1, -0.5) + 0.5
    if may_overwrite(tangent):
        below = torch.le(input, -3, out=torch.empty_like(input))
        return closed(tangent * slope, below)
    # not the product with 0 alone, which is NaN for an infinite tangent
    return (tangent * slope).masked_fill(input <= -3, 0)


_hardswish = bind_pointwise(torch.nn.functional.hardswish, _chain, save="input")


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
        TypeError: ``input`` is no tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    # The op saves its input, which is about to be overwritten.
    output: Tensor = _hardswish(input.clone() if inplace else input)
    return input.copy_(output) if inplace else output
