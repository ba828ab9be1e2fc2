"""Piecewise quadratic approximation of swish.

Forward:   y = x min(max(x + 3, 0), 6) / 6
Backward:  dL/dx = dL/dy * (0 if x <= -3 else 1 if x >= 3 else x / 3 + 1 / 2)
Tangent:   y' = x' * the same

The product rule between the kinks gives (x + 3) / 6 + x / 6. At the kinks, where the slope jumps
by 1/2, it is 0 and 1, as in torch. With the hard sigmoid h (0 below -3, 1 above 3) the slope is
h + x / 6 between the kinks and h beyond them.
Source: Howard et al., Searching for MobileNetV3 (2019), section 5.2.
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise, may_overwrite
from .._precision import accumulate_wide
from ._gate import closed


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    if may_overwrite(tangent):
        between = closed(input, input.abs().ge_(3))
        return between.mul_(1 / 6).add_(torch.nn.functional.hardsigmoid(input)).mul_(tangent)
    between = input.masked_fill(input.abs() >= 3, 0)
    return tangent * ((input / 6 + 0.5).clamp(0, 1) + between / 6)


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
