"""The classes of ``torch.nn``, on hand-written gradients.

Each class below is a subclass of its torch.nn twin and overrides the computation only:
parameters, initialisation, ``state_dict`` keys, ``repr`` and ``isinstance`` checks are torch's.
Every other name of ``torch.nn`` (``Module``, ``Sequential``, ``Flatten``, ``Parameter``,
``init``, layers not derived by hand) is torch's own, so ``from manual_ops import nn`` takes the
place of ``from torch import nn``; ``__all__`` lists what is hand-written.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch import distributed as dist

from . import functional as F
from .ops.sync_batch_norm import sync_batch_norm

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
        running_mean, running_var, momentum = _tracked(self)
        return F.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )


def _tracked(norm: Any) -> tuple[Tensor | None, Tensor | None, float]:
    """Count the batch; return the running statistics to use or update, and the momentum."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    if norm.training and not norm.track_running_stats:
        return None, None, momentum
    return norm.running_mean, norm.running_var, momentum


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """See :class:`torch.nn.BatchNorm1d` and :func:`manual_ops.functional.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """See :class:`torch.nn.BatchNorm2d` and :func:`manual_ops.functional.batch_norm`."""


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """See :class:`torch.nn.SyncBatchNorm` and :mod:`manual_ops.ops.sync_batch_norm`.

    Unlike torch's, on any device, CPU included, and differentiable more than once. Where there is
    a single process, and in evaluation, it is batch norm. (DistributedDataParallel refuses every
    subclass of torch's class on a CPU; there the gradients have to be averaged otherwise.)
    """

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if not self.training or _processes(self.process_group) == 1:
            return super().forward(input)
        running_mean, running_var, momentum = _tracked(self)
        return sync_batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            self.process_group,
        )

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replace every batch norm layer, torch's or ours; see torch's own of the same name."""
        converted: nn.Module = super().convert_sync_batchnorm(  # type: ignore[no-untyped-call]
            module, process_group
        )
        if type(converted) is nn.SyncBatchNorm:  # which torch has just made
            converted.__class__ = cls
        return converted


def _processes(group: Any) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


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


class MultiheadAttention(nn.MultiheadAttention):
    """See :class:`torch.nn.MultiheadAttention`; on ``multi_head_attention_forward``.

    Evaluation runs what training does: torch's separate fast path, and the nested tensors that
    it alone takes, are not reproduced.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        swapped = self.batch_first and query.dim() == 3
        if swapped:  # one tensor in several roles stays one: it is projected at once
            same_query, same_value = query is key, key is value
            key = key.transpose(0, 1)
            query = key if same_query else query.transpose(0, 1)
            value = key if same_value else value.transpose(0, 1)
        output, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return output.transpose(0, 1) if swapped else output, weights


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


if hasattr(nn, "LinearCrossEntropyLoss"):  # new in torch 2.13
    __all__ += ["LinearCrossEntropyLoss"]

    class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
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
