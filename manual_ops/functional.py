"""The names, signatures and defaults of ``torch.nn.functional``, on hand-written gradients.

What is not derived by hand is torch's own, as in ``manual_ops.nn``.
"""

from typing import Any

import torch.nn.functional as _torch_functional

from .ops.adaptive_avg_pool import adaptive_avg_pool2d as adaptive_avg_pool2d
from .ops.attention import scaled_dot_product_attention as scaled_dot_product_attention
from .ops.avg_pool import avg_pool2d as avg_pool2d
from .ops.batch_norm import batch_norm as batch_norm
from .ops.batch_norm_relu_conv import batch_norm_relu_conv2d as batch_norm_relu_conv2d
from .ops.binary_cross_entropy import binary_cross_entropy as binary_cross_entropy
from .ops.binary_cross_entropy_with_logits import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from .ops.conv import conv1d as conv1d
from .ops.conv import conv2d as conv2d
from .ops.conv_relu import conv2d_relu as conv2d_relu
from .ops.cross_entropy import cross_entropy as cross_entropy
from .ops.dropout import dropout as dropout
from .ops.elu import elu as elu
from .ops.embedding import embedding as embedding
from .ops.gelu import gelu as gelu
from .ops.group_norm import group_norm as group_norm
from .ops.hardsigmoid import hardsigmoid as hardsigmoid
from .ops.hardswish import hardswish as hardswish
from .ops.layer_norm import layer_norm as layer_norm
from .ops.leaky_relu import leaky_relu as leaky_relu
from .ops.linear import linear as linear
from .ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from .ops.linear_relu import linear_relu as linear_relu
from .ops.log import log as log
from .ops.log_softmax import log_softmax as log_softmax
from .ops.max_pool import max_pool2d as max_pool2d
from .ops.mse_loss import mse_loss as mse_loss
from .ops.multi_head_attention import (
    multi_head_attention_forward as multi_head_attention_forward,
)
from .ops.nll_loss import nll_loss as nll_loss
from .ops.relu import relu as relu
from .ops.relu6 import relu6 as relu6
from .ops.sigmoid import sigmoid as sigmoid
from .ops.silu import silu as silu
from .ops.softmax import softmax as softmax
from .ops.softplus import softplus as softplus
from .ops.tanh import tanh as tanh


def __getattr__(name: str) -> Any:
    return getattr(_torch_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
