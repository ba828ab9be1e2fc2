"""PyTorch layers whose backward passes are derived and written by hand."""

from . import functional as functional
from . import nn as nn

__version__ = "0.1.0"
