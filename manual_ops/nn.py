"""The classes of ``torch.nn``, on hand-written gradients.

Each class below is a subclass of its torch.nn twin and overrides the computation only:
parameters, initialisation, ``state_dict`` keys, ``repr`` and ``isinstance`` checks are torch's.
Every other name of ``torch.nn`` (``Module``, ``Sequential``, ``Flatten``, ``Parameter``,
``init``, layers not derived by hand) is torch's own, so ``from manual_ops import nn`` takes the
place of ``from torch import nn``; ``__all__`` lists what is hand-written.
"""

from typing import Any

from torch import Tensor, nn

from . import functional as F

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "NLLLoss",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]


def __getattr__(name: str) -> Any:
    return getattr(nn, name)


class Linear(nn.Linear):
    """See :class:`torch.nn.Linear` and :func:`manual_ops.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


class Conv1d(nn.Conv1d):
    """See :class:`torch.nn.Conv1d` and :func:`manual_ops.functional.conv1d`."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _explicitly_padded(self, input)
        return F.conv1d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv2d(nn.Conv2d):
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


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        use_running = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """See :class:`torch.nn.BatchNorm1d` and :func:`manual_ops.functional.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """See :class:`torch.nn.BatchNorm2d` and :func:`manual_ops.functional.batch_norm`."""


class MaxPool2d(nn.MaxPool2d):
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


class AvgPool2d(nn.AvgPool2d):
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


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """See :class:`torch.nn.AdaptiveAvgPool2d`; on ``adaptive_avg_pool2d``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class LayerNorm(nn.LayerNorm):
    """See :class:`torch.nn.LayerNorm` and :func:`manual_ops.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """See :class:`torch.nn.GroupNorm` and :func:`manual_ops.functional.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class Embedding(nn.Embedding):
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


class Dropout(nn.Dropout):
    """See :class:`torch.nn.Dropout` and :func:`manual_ops.functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


class ReLU(nn.ReLU):
    """See :class:`torch.nn.ReLU` and :func:`manual_ops.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class LeakyReLU(nn.LeakyReLU):
    """See :class:`torch.nn.LeakyReLU` and :func:`manual_ops.functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class Sigmoid(nn.Sigmoid):
    """See :class:`torch.nn.Sigmoid` and :func:`manual_ops.functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(nn.Tanh):
    """See :class:`torch.nn.Tanh` and :func:`manual_ops.functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class ReLU6(nn.ReLU6):
    """See :class:`torch.nn.ReLU6` and :func:`manual_ops.functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input, self.inplace)


class ELU(nn.ELU):
    """See :class:`torch.nn.ELU` and :func:`manual_ops.functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace)


class GELU(nn.GELU):
    """See :class:`torch.nn.GELU` and :func:`manual_ops.functional.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)


class SiLU(nn.SiLU):
    """See :class:`torch.nn.SiLU` and :func:`manual_ops.functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, self.inplace)


class Hardswish(nn.Hardswish):
    """See :class:`torch.nn.Hardswish` and :func:`manual_ops.functional.hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input, self.inplace)


class Hardsigmoid(nn.Hardsigmoid):
    """See :class:`torch.nn.Hardsigmoid` and :func:`manual_ops.functional.hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input, self.inplace)


class Softplus(nn.Softplus):
    """See :class:`torch.nn.Softplus` and :func:`manual_ops.functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Softmax(nn.Softmax):
    """See :class:`torch.nn.Softmax` and :func:`manual_ops.functional.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """See :class:`torch.nn.LogSoftmax` and :func:`manual_ops.functional.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)


class NLLLoss(nn.NLLLoss):
    """See :class:`torch.nn.NLLLoss` and :func:`manual_ops.functional.nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """See :class:`torch.nn.CrossEntropyLoss` and :func:`manual_ops.functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCELoss(nn.BCELoss):
    """See :class:`torch.nn.BCELoss` and :func:`manual_ops.functional.binary_cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """See :class:`torch.nn.BCEWithLogitsLoss`; on ``binary_cross_entropy_with_logits``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class MSELoss(nn.MSELoss):
    """See :class:`torch.nn.MSELoss` and :func:`manual_ops.functional.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)
