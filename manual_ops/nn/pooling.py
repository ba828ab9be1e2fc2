"""Pooling."""

from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class MaxPool2d(nn.MaxPool2d, metaclass=Twin):
    """See :class:`torch.nn.MaxPool2d` and :func:`manual_ops.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(nn.AvgPool2d, metaclass=Twin):
    """See :class:`torch.nn.AvgPool2d` and :func:`manual_ops.functional.avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d, metaclass=Twin):
    """See :class:`torch.nn.AdaptiveAvgPool2d`; on ``adaptive_avg_pool2d``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)
