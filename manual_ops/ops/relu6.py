"""Rectified linear unit capped at 6.

Forward:   y = min(max(x, 0), 6)
Backward:  dL/dx = dL/dy if 0 < y < 6 else 0
Tangent:   y' = x' if 0 < y < 6 else 0

The subgradient at both kinks is 0, as in torch. y is 0 or 6 exactly where the gradient is
blocked, so the output is saved instead of the input; the next convolution saves the same tensor.
Source: Krizhevsky, Convolutional Deep Belief Networks on CIFAR-10 (2010).
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._blocks import blockwise
from .._overridable import overridable
from ._bits import stop


def _chain(tangent: Tensor, output: Tensor) -> Tensor:
    return tangent.masked_fill((output == 0) | (output == 6), 0)


@blockwise
def _in_place(tangent: Tensor, output: Tensor, *, out: Tensor) -> Tensor:
    # threshold(y, 0, 6) is y where y > 0 and 6 elsewhere
    return stop(tangent, torch.threshold(output, 0, 6, out=out).eq_(6), out=out)


_relu6 = bind_pointwise(
    torch.nn.functional.relu6,
    _chain,
    save="output",
    in_place=_in_place,
    overwrite=torch._C._nn.relu6_,
)


@overridable(torch.nn.functional.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``min(max(x, 0), 6)`` elementwise; drop-in for :func:`torch.nn.functional.relu6`.

    Args:
        input: Any shape, any real dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``. The derivative at 0 and at 6 is 0, at NaN 1
        (torch: 0 or 1, by kernel).

    Raises:
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``inplace`` on a leaf that requires grad.
    """
    output: Tensor = _relu6.overwriting(input) if inplace else _relu6(input)
    return output
