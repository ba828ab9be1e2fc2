"""Layers that are two or three of ``torch.nn`` in one op; what they hold is torch.nn's."""

from typing import Any

from torch import Tensor, nn

from .. import functional as F
from .norm import in_training, tracked


class LinearReLU(nn.Linear):
    """``ReLU(Linear(input))``; arguments and parameters of :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_relu(self, input)


class Conv2dReLU(nn.Conv2d):
    """``ReLU(Conv2d(input))``; arguments and parameters of :class:`torch.nn.Conv2d`.

    Raises:
        NotImplementedError: ``padding_mode`` is not ``"zeros"``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _refuse_padding_mode(self)

    def forward(self, input: Tensor) -> Tensor:
        return conv_relu(self, input)


class BatchNormReLUConv2d(nn.Module):
    """``Conv2d(ReLU(BatchNorm2d(input) + residual))``, which saves no activation in training.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the convolution.
        **settings: Of :class:`torch.nn.Conv2d` (``stride``, ``padding``, ``dilation``, ``groups``,
            ``bias``, ``device``, ``dtype``) and of :class:`torch.nn.BatchNorm2d` (``eps``,
            ``momentum``, ``affine``, ``track_running_stats``).

    Shape:
        - input: ``(N, in_channels, H, W)``
        - residual: as input, or None
        - output: ``(N, out_channels, H_out, W_out)``

    Attributes:
        norm: ``BatchNorm2d(in_channels)``.
        conv: ``Conv2d(in_channels, out_channels, kernel_size)``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, **settings: Any
    ) -> None:
        super().__init__()
        of_norm = {k: settings.pop(k) for k in _OF_NORM if k in settings}
        placed = {k: settings[k] for k in ("device", "dtype") if k in settings}
        self.norm = nn.BatchNorm2d(in_channels, **of_norm, **placed)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, **settings)
        _refuse_padding_mode(self.conv)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        return norm_relu_conv(self.norm, self.conv, input, residual)


def linear_relu(linear: nn.Linear, input: Tensor) -> Tensor:
    """Run two layers as one op: ``relu(linear(input))``."""
    return F.linear_relu(input, linear.weight, linear.bias)


def conv_relu(conv: nn.Conv2d, input: Tensor) -> Tensor:
    """Run two layers as one op: ``relu(conv(input))``."""
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.conv2d_relu(input, conv.weight, conv.bias, *settings)


def linear_cross_entropy(
    linear: nn.Linear, criterion: nn.CrossEntropyLoss, input: Tensor, target: Tensor
) -> Tensor:
    """Run two layers as one op: ``criterion(linear(input), target)``."""
    if input.dim() > 2:  # there the loss takes its classes along another dim than the last
        loss: Tensor = criterion(linear(input), target)
        return loss
    # Beside probabilities a negative index means nothing to the layer, but the function refuses it.
    unused = criterion.ignore_index < 0 and target.is_floating_point()
    return F.linear_cross_entropy(
        input,
        linear.weight,
        target,
        linear_bias=linear.bias,
        weight=criterion.weight,
        ignore_index=None if unused else criterion.ignore_index,
        reduction=criterion.reduction,
        label_smoothing=criterion.label_smoothing,
    )


def norm_relu_conv(
    norm: nn.BatchNorm2d,
    conv: nn.Conv2d,
    input: Tensor,
    residual: Tensor | None = None,
    return_activation: bool = False,
) -> Any:
    """Run three layers as one op: ``conv(relu(norm(input) + residual))``."""
    if residual is not None and residual.shape != input.shape:
        activation = F.relu(norm(input) + residual)
        return (conv(activation), activation) if return_activation else conv(activation)
    norm._check_input_dim(input)
    running_mean, running_var, momentum = tracked(norm)
    return F.batch_norm_relu_conv2d(
        input,
        running_mean,
        running_var,
        norm.weight,
        norm.bias,
        conv.weight,
        conv.bias,
        residual,
        in_training(norm),
        momentum,
        norm.eps,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        return_activation,
    )


_OF_NORM = ("eps", "momentum", "affine", "track_running_stats")


def _refuse_padding_mode(conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros":
        raise NotImplementedError(
            f"a fused convolution pads with zeros, got padding_mode={conv.padding_mode!r}"
        )
