"""Logistic sigmoid.

Forward:   y = 1 / (1 + exp(-x))
Backward:  dL/dx = dL/dy * y (1 - y)
Tangent:   y' = x' * y (1 - y)

From dy/dx = exp(-x) / (1 + exp(-x))^2 = y * exp(-x) / (1 + exp(-x)) = y (1 - y).
Only the output is needed. Source: Rumelhart, Hinton and Williams, Learning Representations by
Back-propagating Errors (1986).
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._overridable import overridable
from .._precision import accumulate_wide


@accumulate_wide
def _chain(tangent: Tensor, output: Tensor) -> Tensor:
    return (1 - output) * output * tangent


@accumulate_wide
def _in_place(tangent: Tensor, output: Tensor, *, out: Tensor) -> Tensor:
    # y - y^2 cancels near 1, but loses no more there than the rounding of y has lost already
    return torch.addcmul(output, output, output, value=-1, out=out).mul_(tangent)


_sigmoid = bind_pointwise(torch.sigmoid, _chain, save="output", in_place=_in_place)


@overridable(torch.sigmoid)
def sigmoid(input: Tensor) -> Tensor:
    """Apply ``1 / (1 + exp(-x))`` elementwise; drop-in for :func:`torch.sigmoid`.

    Args:
        input: Any shape, real or complex dtype.

    Returns:
        Same shape as ``input``, values in [0, 1].

    Raises:
        TypeError: ``input`` is not a Tensor.
    """
    output: Tensor = _sigmoid(input)
    return output
