"""Affine maps."""

from torch import Tensor, nn

from .. import functional as F


class Linear(nn.Linear):
    """See :class:`torch.nn.Linear` and :func:`manual_ops.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)
