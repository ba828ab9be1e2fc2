"""Losses."""

from torch import Tensor, nn

from .. import functional as F
from ._twin import Twin


class NLLLoss(nn.NLLLoss, metaclass=Twin):
    """See :class:`torch.nn.NLLLoss` and :func:`manual_ops.functional.nll_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropyLoss(nn.CrossEntropyLoss, metaclass=Twin):
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


if hasattr(nn, "LinearCrossEntropyLoss"):  # new in torch 2.13

    class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss, metaclass=Twin):
        """See :class:`torch.nn.LinearCrossEntropyLoss`; on ``linear_cross_entropy``."""

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            shape = (self.num_classes, *self.out_features)
            weight, bias = self.linear.weight, self.linear.bias
            return F.linear_cross_entropy(
                input,
                weight.reshape(*shape, self.linear.in_features),
                target,
                linear_bias=None if bias is None else bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )


class BCELoss(nn.BCELoss, metaclass=Twin):
    """See :class:`torch.nn.BCELoss` and :func:`manual_ops.functional.binary_cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss, metaclass=Twin):
    """See :class:`torch.nn.BCEWithLogitsLoss`; on ``binary_cross_entropy_with_logits``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class MSELoss(nn.MSELoss, metaclass=Twin):
    """See :class:`torch.nn.MSELoss` and :func:`manual_ops.functional.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)
