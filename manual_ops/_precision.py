"""Which dtype an op computes in: autocast policies and accumulation of half precision."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def lower_precision(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast to the active autocast dtype, as torch does for matmuls and convolutions.

    Identity outside autocast. Like torch's own policy, float64 and non-floating tensors pass
    through. ``torch.amp.custom_fwd`` cannot be used instead: it breaks with ``setup_context``.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device_type = _device_type(tensors)
    if not _autocasts(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)
        for t in tensors
    )


def full_precision(*tensors: Tensor | None, on_cpu: bool = True) -> tuple[Any, ...]:
    """Cast half precision to float32 under autocast, as torch does for losses and exponentials.

    Args:
        *tensors: Any tensors or ``None``; those not of half precision pass through.
        on_cpu: False for the ops (softmax, log, ...) that torch leaves alone on CPU.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device_type = _device_type(tensors)
    if not _autocasts(device_type) or (device_type == "cpu" and not on_cpu):
        return tensors
    return tuple(t if t is None else widen(t) for t in tensors)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on where ``tensor`` lives."""
    return _autocasts(tensor.device.type)


def widen(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def accumulate_wide(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Evaluate ``formula`` in float32 for half tensors and round once, as ATen's kernels do.

    The result has the dtype of the formula's first argument. Where the caller gives ``out``, the
    formula works in it and leaves the result there (see ``blockwise``).
    """

    @functools.wraps(formula)
    def wide(first: Tensor, *args: object, out: Tensor | None = None) -> Tensor:
        if first.dtype not in _HALF:
            return formula(first, *args) if out is None else formula(first, *args, out=out)
        widened = [widen(a) if isinstance(a, Tensor) else a for a in args]
        if out is None:
            return formula(first.float(), *widened).to(first.dtype)
        wide_out = torch.empty_like(out, dtype=torch.float32)
        return out.copy_(formula(first.float(), *widened, out=wide_out))

    return wide


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which products keep their dtype, whatever the caller of backward set."""
    if not _autocasts(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _autocasts(device_type: str) -> bool:
    # The meta device, for one, has no autocast to ask about.
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def _device_type(tensors: tuple[Tensor | None, ...]) -> str:
    # What is not a Tensor at all is left for the op to refuse.
    return next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
