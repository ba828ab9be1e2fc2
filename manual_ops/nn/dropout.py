"""Dropout."""

from torch import Tensor, nn

from .. import functional as F


class Dropout(nn.Dropout):
    """See :class:`torch.nn.Dropout` and :func:`manual_ops.functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)
