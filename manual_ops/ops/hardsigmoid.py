"""Piecewise linear approximation of the sigmoid.

Forward:   y = min(max(x + 3, 0), 6) / 6
Backward:  dL/dx = dL/dy / 6 if -3 < x < 3 else 0
Tangent:   y' = x' / 6 if -3 < x < 3 else 0

The subgradient at both kinks is 0, as in torch. The second derivative is 0 wherever it exists;
torch has none to offer. Source: Howard et al., Searching for MobileNetV3 (2019), section 5.2.
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise, may_overwrite
from .._precision import accumulate_wide
from ._bits import stopped


@accumulate_wide
def _chain(tangent: Tensor, input: Tensor) -> Tensor:
    if may_overwrite(tangent):
        # hardshrink(x, z) is 0 where |x| <= z, here the number before 3, and x elsewhere; NaN
        # stays NaN and gets 0, as in torch
        before_3 = 3 - 2 * torch.finfo(input.dtype).eps
        return stopped(tangent, torch.nn.functional.hardshrink(input, before_3)).mul_(1 / 6)
    return (tangent / 6).masked_fill(~(input.abs() < 3), 0)


@accumulate_wide
def _formula(input: Tensor) -> Tensor:
    return torch.nn.functional.relu6(input + 3) / 6


def _forward(input: Tensor) -> Tensor:
    # Inside compiled torch.func transforms PyTorch differentiates this; it cannot the fused kernel.
    if torch.compiler.is_compiling():
        return _formula(input)
    return torch.nn.functional.hardsigmoid(input)


_hardsigmoid = bind_pointwise(_forward, _chain, save="input")


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``relu6(x + 3) / 6`` elementwise; drop-in for torch's ``hardsigmoid``.

    Args:
        input: Any shape, floating dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``, values in [0, 1]. The derivative at -3 and at 3 is 0.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is no tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    # The op saves its input, which is about to be overwritten.
    output: Tensor = _hardsigmoid(torch.clone(input) if inplace else input)
    return input.copy_(output) if inplace else output
