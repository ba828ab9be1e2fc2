"""Rows by index."""

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class Embedding(nn.Embedding, metaclass=Twin):
    """See :class:`torch.nn.Embedding` and :func:`manual_ops.functional.embedding`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
