"""Hyperbolic tangent.

Forward:   y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))
Backward:  dL/dx = dL/dy * (1 - y^2)
Tangent:   y' = x' * (1 - y^2)

By the quotient rule dy/dx = (cosh^2 x - sinh^2 x) / cosh^2 x = 1 - y^2. Only the output is
needed. Source: LeCun, Bottou, Orr and Mueller, Efficient BackProp (1998), section 4.4.
"""

import torch
from torch import Tensor

from .._apply import bind_pointwise
from .._overridable import overridable
from .._precision import accumulate_wide


@accumulate_wide
def _chain(tangent: Tensor, output: Tensor) -> Tensor:
    return (1 - output * output) * tangent


@accumulate_wide
def _in_place(tangent: Tensor, output: Tensor, *, out: Tensor) -> Tensor:
    return torch.addcmul(output.new_ones(()), output, output, value=-1, out=out).mul_(tangent)


_tanh = bind_pointwise(torch.tanh, _chain, save="output", in_place=_in_place)


@overridable(torch.tanh)
def tanh(input: Tensor) -> Tensor:
    """Apply the hyperbolic tangent elementwise; drop-in for :func:`torch.tanh`.

    Args:
        input: Any shape, real or complex dtype.

    Returns:
        Same shape as ``input``, values in [-1, 1].

    Raises:
        TypeError: ``input`` is not a Tensor.
    """
    output: Tensor = _tanh(input)
    return output
