"""Ops of ours for which torch has no name in torch.nn.functional, in torch's terms."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def torch_op(name: str) -> Callable[..., Any]:
    """Return torch's op of that name, or the composition below."""
    op: Callable[..., Any] = globals().get(name) or getattr(F, name)
    return op


log = torch.log


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer, then a rectifier."""
    return F.relu(F.linear(input, weight, bias))


def conv2d_relu(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **settings: Any
) -> Tensor:
    """A convolution, then a rectifier."""
    return F.relu(F.conv2d(input, weight, bias, **settings))


def batch_norm_relu_conv2d(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    return_activation: bool = False,
    **settings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Batch norm, a sum, a rectifier, a convolution."""
    statistics = (running_mean, running_var)
    output = F.batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    activation = F.relu(output if residual is None else output + residual)
    convolved = F.conv2d(activation, conv_weight, conv_bias, **settings)
    return (convolved, activation) if return_activation else convolved
