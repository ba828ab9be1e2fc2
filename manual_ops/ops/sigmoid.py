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
from .._modes import may_overwrite
from .._precision import accumulate_wide


@accumulate_wide
def _chain(tangent: Tensor, output: Tensor) -> Tensor:
    # 1 - y first: it is exact near 1, where y - y^2 would cancel
    slope = 1 - output
    if may_overwrite(tangent):
        return slope.mul_(output).mul_(tangent)
    return slope * output * tangent


_sigmoid = bind_pointwise(torch.sigmoid, _chain, save="output")


def sigmoid(input: Tensor) -> Tensor:
    """Apply ``1 / (1 + exp(-x))`` elementwise; drop-in for :func:`torch.sigmoid`.

    Args:
        input: Any shape, real dtype.

    Returns:
        Same shape as ``input``, values in [0, 1].
    """
    output: Tensor = _sigmoid(input)
    return output
