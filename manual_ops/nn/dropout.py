"""Dropout."""

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class Dropout(nn.Dropout, metaclass=Twin):
    """See :class:`torch.nn.Dropout` and :func:`manual_ops.functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)
