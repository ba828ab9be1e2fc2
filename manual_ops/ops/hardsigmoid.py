"""Piecewise linear approximation of the sigmoid.

Forward:   y = min(max(x + 3, 0), 6) / 6
Backward:  dL/dx = dL/dy / 6 if -3 < x < 3 else 0
Tangent:   y' = x' / 6 if -3 < x < 3 else 0

The subgradient at both kinks is 0, as in torch. The second derivative is 0 wherever it exists;
torch has none to offer. Source: Howard et al., Searching for MobileNetV3 (2019), section 5.2.
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
    return (tangent / 6).masked_fill(~(input.abs() < 3), 0)


@blockwise
@accumulate_wide
def _in_place(tangent: Tensor, input: Tensor, *, out: Tensor) -> Tensor:
    # hardshrink(x, z) is 0 where |x| <= z, here the number before 3, and x elsewhere; NaN stays
    # NaN and gets 0, as in torch
    before_3 = 3 - 2 * torch.finfo(input.dtype).eps
    return stop(tangent, torch.hardshrink(input, before_3, out=out), out=out).mul_(1 / 6)


@accumulate_wide
def _formula(input: Tensor) -> Tensor:
    return torch.nn.functional.relu6(input + 3) / 6


def _forward(input: Tensor) -> Tensor:
    # Inside compiled torch.func transforms PyTorch differentiates this; it cannot the fused kernel.
    if torch.compiler.is_compiling():
        return _formula(input)
    return torch.nn.functional.hardsigmoid(input)


_hardsigmoid = bind_pointwise(_forward, _chain, save="input", in_place=_in_place)


@overridable(torch.nn.functional.hardsigmoid)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``relu6(x + 3) / 6`` elementwise; drop-in for torch's ``hardsigmoid``.

    Args:
        input: Any shape, floating dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``, values in [0, 1]. The derivative at -3 and at 3 is 0.

    Raises:
        NotImplementedError: Integer ``input``.
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    output: Tensor = _hardsigmoid.overwriting(input) if inplace else _hardsigmoid(input)
    return output
