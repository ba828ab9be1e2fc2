"""Rectified linear unit.

Forward:   y = max(x, 0)
Backward:  dL/dx = dL/dy if y > 0 else 0
Tangent:   y' = x' if y > 0 else 0

The subgradient at the kink is 0: relu'(0) = 0, as in torch. y > 0 exactly where x > 0, so the
output is saved instead of the input; the next linear or convolution saves the same tensor.
Source: Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines (2010).
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise, in_place_where_allowed
from .._overridable import overridable
from ._bits import stop


def _chain(tangent: Tensor, output: Tensor) -> Tensor:
    return tangent.masked_fill(output == 0, 0)


def _in_place(tangent: Tensor, output: Tensor, *, out: Tensor) -> Tensor:
    return stop(tangent, torch.eq(output, 0, out=out), out=out)


rectifier_chain = in_place_where_allowed(_chain, _in_place)  # for ops that end in a rectifier
_relu = bind_pointwise(torch.relu, _chain, save="output", in_place=_in_place, overwrite=torch.relu_)


@overridable(torch.nn.functional.relu)
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Apply ``max(x, 0)`` elementwise; drop-in for :func:`torch.nn.functional.relu`.

    Args:
        input: Any shape, any real dtype.
        inplace: Also write the result into ``input`` and return that.

    Returns:
        Same shape and dtype as ``input``. The derivative at 0 is 0.

    Raises:
        RuntimeError: ``inplace`` on a leaf that requires grad.
        TypeError: ``input`` is not a Tensor.
    """
    output: Tensor = _relu.overwriting(input) if inplace else _relu(input)
    return output
