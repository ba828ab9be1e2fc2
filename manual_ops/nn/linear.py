"""Affine maps."""

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class Linear(nn.Linear, metaclass=Twin):
    """See :class:`torch.nn.Linear` and :func:`manual_ops.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)
