"""Convolutions."""

from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class Conv1d(nn.Conv1d, metaclass=Twin):
    """See :class:`torch.nn.Conv1d` and :func:`manual_ops.functional.conv1d`."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _explicitly_padded(self, input)
        return F.conv1d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv2d(nn.Conv2d, metaclass=Twin):
    """See :class:`torch.nn.Conv2d` and :func:`manual_ops.functional.conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _explicitly_padded(self, input)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


def _explicitly_padded(conv: Any, input: Tensor) -> tuple[Tensor, Any]:
    """Apply a padding mode other than zeros; return what padding is left to the convolution."""
    if conv.padding_mode == "zeros":
        return input, conv.padding
    pads = conv._reversed_padding_repeated_twice
    return nn.functional.pad(input, pads, mode=conv.padding_mode), 0
