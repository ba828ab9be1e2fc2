"""PyTorch layers whose backward passes are derived and written by hand."""

from . import functional as functional
from . import nn as nn
from ._fuse import fuse as fuse
from .check import check as check
from .check.compare import compare as compare
from .convert import convert as convert
from .convert import override as override
from .convert import revert as revert
from .trace import trace as trace

__version__ = "0.1.0"
