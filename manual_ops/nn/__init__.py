"""The classes of ``torch.nn``, on hand-written gradients.

Each class that ``__all__`` lists is a subclass of its torch.nn twin and overrides the computation
only: parameters, initialisation, ``state_dict`` keys, ``repr`` and ``isinstance`` checks are
torch's, the last in both directions: a ``torch.nn.Linear`` is an instance of ``Linear`` here.
Every other name of ``torch.nn`` (``Module``, ``Sequential``, ``Flatten``, ``Parameter``,
``init``, layers not derived by hand) is torch's own, and ``functional`` is
``manual_ops.functional``, so ``from manual_ops import nn`` takes the place of ``from torch import
nn``. Layers that torch.nn has as two or three stand in ``fused.py``.
"""

import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import functional as functional
from .activation import ELU as ELU
from .activation import GELU as GELU
from .activation import Hardsigmoid as Hardsigmoid
from .activation import Hardswish as Hardswish
from .activation import LeakyReLU as LeakyReLU
from .activation import LogSoftmax as LogSoftmax
from .activation import ReLU as ReLU
from .activation import ReLU6 as ReLU6
from .activation import Sigmoid as Sigmoid
from .activation import SiLU as SiLU
from .activation import Softmax as Softmax
from .activation import Softplus as Softplus
from .activation import Tanh as Tanh
from .conv import Conv1d as Conv1d
from .conv import Conv2d as Conv2d
from .dropout import Dropout as Dropout
from .embedding import Embedding as Embedding
from .fused import BatchNormReLUConv2d as BatchNormReLUConv2d
from .fused import Conv2dReLU as Conv2dReLU
from .fused import LinearReLU as LinearReLU
from .linear import Linear as Linear
from .loss import BCELoss as BCELoss
from .loss import BCEWithLogitsLoss as BCEWithLogitsLoss
from .loss import CrossEntropyLoss as CrossEntropyLoss
from .loss import MSELoss as MSELoss
from .loss import NLLLoss as NLLLoss
from .multihead_attention import MultiheadAttention as MultiheadAttention
from .norm import BatchNorm1d as BatchNorm1d
from .norm import BatchNorm2d as BatchNorm2d
from .norm import GroupNorm as GroupNorm
from .norm import LayerNorm as LayerNorm
from .norm import SyncBatchNorm as SyncBatchNorm
from .pooling import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from .pooling import AvgPool2d as AvgPool2d
from .pooling import MaxPool2d as MaxPool2d

if TYPE_CHECKING:  # what type checkers cannot see through __getattr__
    from torch.nn import Flatten as Flatten
    from torch.nn import Identity as Identity
    from torch.nn import Module as Module
    from torch.nn import ModuleDict as ModuleDict
    from torch.nn import ModuleList as ModuleList
    from torch.nn import Parameter as Parameter
    from torch.nn import Sequential as Sequential
    from torch.nn import init as init

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
    "MultiheadAttention",
    "NLLLoss",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SyncBatchNorm",
    "Tanh",
]

if hasattr(nn, "LinearCrossEntropyLoss"):  # new in torch 2.13
    from .loss import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss"]


# For ``import manual_ops.nn.functional as F`` and the like. Not for packages (``nn.utils``): their
# modules would be imported a second time, by another name.
sys.modules |= {
    f"{__name__}.functional": functional,
    f"{__name__}.init": nn.init,
    f"{__name__}.parameter": nn.parameter,
}


def __getattr__(name: str) -> Any:
    return getattr(nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(nn)})
