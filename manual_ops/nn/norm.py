"""Normalisation."""

from typing import Any

from torch import Tensor, nn
from torch import distributed as dist

from .. import functional as F
from ..ops.sync_batch_norm import sync_batch_norm
from ._twin import Twin


class _BatchNorm(nn.modules.batchnorm._BatchNorm, metaclass=Twin):
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        running_mean, running_var, momentum = tracked(self)
        return F.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            in_training(self),
            momentum,
            self.eps,
        )


def tracked(norm: Any) -> tuple[Tensor | None, Tensor | None, float]:
    """Count the batch; return the running statistics to use or update, and the momentum."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    if norm.training and not norm.track_running_stats:
        return None, None, momentum
    return norm.running_mean, norm.running_var, momentum


def in_training(norm: Any) -> bool:
    """Whether ``norm`` normalises by the batch's own statistics."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """See :class:`torch.nn.BatchNorm1d` and :func:`manual_ops.functional.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """See :class:`torch.nn.BatchNorm2d` and :func:`manual_ops.functional.batch_norm`."""


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """See :class:`torch.nn.SyncBatchNorm` and :mod:`manual_ops.ops.sync_batch_norm`.

    Unlike torch's, on any device, CPU included, and differentiable more than once. Where there is
    a single process, and in evaluation, it is batch norm. (DistributedDataParallel refuses to wrap
    this layer on a CPU, like torch's: wrap the model with batch norms, and convert them then.)
    """

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        if not self.training or _processes(self.process_group) == 1:
            return super().forward(input)
        running_mean, running_var, momentum = tracked(self)
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


class LayerNorm(nn.LayerNorm, metaclass=Twin):
    """See :class:`torch.nn.LayerNorm` and :func:`manual_ops.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(nn.GroupNorm, metaclass=Twin):
    """See :class:`torch.nn.GroupNorm` and :func:`manual_ops.functional.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
