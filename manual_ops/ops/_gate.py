"""Letting a gradient pass or not, element by element."""

import torch
from torch import Tensor

_INT_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def closed(tangent: Tensor, gate: Tensor) -> Tensor:
    """Return ``tangent`` where ``gate`` is 0, and 0 where it is 1, written over ``gate``.

    The bits of the tangent are multiplied by 1 or 0 as integers: ``where`` and ``masked_fill``
    are 8 times slower on CPU, and a product of floats would turn an infinite tangent into NaN.

    Args:
        tangent: Any floating dtype.
        gate: Zeros and ones of the same shape and dtype, to be overwritten.
    """
    int_dtype = _INT_OF_SIZE[tangent.element_size()]
    bits = gate.view(int_dtype)
    return bits.eq_(0).mul_(tangent.view(int_dtype)).view(tangent.dtype)
