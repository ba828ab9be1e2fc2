"""Alternating measurement of two sides, and the bytes they save for backward."""

import ctypes
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.benchmark import Timer


def keep_memory() -> None:
    """Stop glibc from handing freed memory back to the system, for the rest of the process.

    Two sides in turn make it do so at every change, and the next allocation pays in page faults.
    One model trained by itself reuses its memory (0 page faults a step), so this is what to time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 1 << 30)
    mallopt(mmap_threshold, 1 << 30)


@dataclass(frozen=True)
class Comparison:
    """Time of one call of ours over torch.nn's: medians in seconds, and the spread of the ratio."""

    ours: float
    torch: float
    ratio: float
    low: float
    high: float


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float = 1.0, pairs: int = 15
) -> Comparison:
    """Time both sides in turn for about ``seconds`` and take the median ratio of the ``pairs``.

    On a shared machine the absolute times drift; neighbouring pairs see the same drift.
    ``low`` and ``high`` are the quartiles of the ratios.
    """
    threads = torch.get_num_threads()
    sides = [
        Timer("side()", globals={"side": side}, num_threads=threads) for side in (ours, theirs)
    ]
    once = max(sum(timer.timeit(3).mean for timer in sides), 1e-7)  # also warms up
    calls = max(1, round(seconds / once / pairs))
    times = [[timer.timeit(calls).mean for timer in sides] for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    ours_time, torch_time = (statistics.median(side) for side in zip(*times, strict=True))
    return Comparison(ours_time, torch_time, ratio, low, high)


def saved_bytes(forward: Callable[[], Any], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that ``forward`` keeps for backward, counted by distinct storages.

    Args:
        forward: Runs it and returns the output.
        besides: Tensors that are there anyway: the parameters of a model.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    for tensor in besides:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def geometric_mean(ratios: list[float]) -> float:
    """Mean of ratios: twice as fast and twice as slow cancel."""
    return statistics.geometric_mean(ratios)
