"""Activations."""

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class ReLU(nn.ReLU, metaclass=Twin):
    """See :class:`torch.nn.ReLU` and :func:`manual_ops.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, self.inplace)


class LeakyReLU(nn.LeakyReLU, metaclass=Twin):
    """See :class:`torch.nn.LeakyReLU` and :func:`manual_ops.functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class Sigmoid(nn.Sigmoid, metaclass=Twin):
    """See :class:`torch.nn.Sigmoid` and :func:`manual_ops.functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(nn.Tanh, metaclass=Twin):
    """See :class:`torch.nn.Tanh` and :func:`manual_ops.functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class ReLU6(nn.ReLU6, metaclass=Twin):
    """See :class:`torch.nn.ReLU6` and :func:`manual_ops.functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input, self.inplace)


class ELU(nn.ELU, metaclass=Twin):
    """See :class:`torch.nn.ELU` and :func:`manual_ops.functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace)


class GELU(nn.GELU, metaclass=Twin):
    """See :class:`torch.nn.GELU` and :func:`manual_ops.functional.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)


class SiLU(nn.SiLU, metaclass=Twin):
    """See :class:`torch.nn.SiLU` and :func:`manual_ops.functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, self.inplace)


class Hardswish(nn.Hardswish, metaclass=Twin):
    """See :class:`torch.nn.Hardswish` and :func:`manual_ops.functional.hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardswish(input, self.inplace)


class Hardsigmoid(nn.Hardsigmoid, metaclass=Twin):
    """See :class:`torch.nn.Hardsigmoid` and :func:`manual_ops.functional.hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.hardsigmoid(input, self.inplace)


class Softplus(nn.Softplus, metaclass=Twin):
    """See :class:`torch.nn.Softplus` and :func:`manual_ops.functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Softmax(nn.Softmax, metaclass=Twin):
    """See :class:`torch.nn.Softmax` and :func:`manual_ops.functional.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax, metaclass=Twin):
    """See :class:`torch.nn.LogSoftmax` and :func:`manual_ops.functional.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)
