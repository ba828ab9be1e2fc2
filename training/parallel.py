"""Several processes that train one model, as ``torchrun`` starts them.

Every process has all of the data and draws the same batches; it works on its share of each, and
DistributedDataParallel averages the gradients. The first process alone writes and prints. In a
process by itself all functions here do what they would do for one of one.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes if torchrun started this one; all but the first fall silent."""
    if not dist.is_torchelastic_launched():
        yield
        return
    # torchrun keeps its store over a restart: without a name of its own, an attempt may find the
    # addresses of the one before, whose processes are dead.
    store, rank, world_size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        # Gloo beside NCCL, so that what lives on the CPU is exchanged without waiting for the GPU.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
    )
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


def may_restart() -> bool:
    """Return whether torchrun starts the processes again should one of them die."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def was_restarted() -> bool:
    """Return whether torchrun has done so."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def local_device(name: str) -> str:
    """Return ``"cuda"`` as the name of the GPU that is this process's own on its machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and count() > 1 else name


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process through the block before the others, to download for all, say."""
    if count() > 1 and not is_first():
        dist.barrier()
    try:
        yield
    finally:
        if count() > 1 and is_first():
            dist.barrier()


def by_first(function: Callable[[], T]) -> T:
    """Call ``function`` in the first process; return its result, or raise its error, in all."""
    outcome: list[Any] = [None, None]  # result and error
    if is_first():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    if count() > 1:
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def gather(value: T) -> list[T]:
    """Return the ``value`` of every process."""
    values: list[Any] = [value]
    if count() > 1:
        values *= count()
        dist.all_gather_object(values, value)
    return values


def highest(*values: int) -> list[int]:
    """Return the highest of each of the ``values`` over all processes."""
    together = torch.tensor(values)
    if count() > 1:
        dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.tolist()


def mean(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over all processes."""
    if count() > 1:
        dist.all_reduce(values)  # gloo has no mean
        values /= count()
    return values


def take_buffers_of_first(model: Module) -> None:
    """Give ``model`` the buffers it has in the first process: running statistics differ."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def share(*batch: Tensor) -> list[Tensor]:
    """Return this process's share of each tensor along the first axis, as large as the others'."""
    size = len(batch[0]) // count()
    return [tensor[rank() * size : (rank() + 1) * size] for tensor in batch]


def distribute(model: Module, layers: ModuleType, *, sync_batch_norm: bool) -> Module:
    """Return a module to train that averages the gradients of ``model`` over the processes.

    Args:
        model: On its device; it keeps its parameters, buffers and names.
        layers: Namespace of the layers that it is made of.
        sync_batch_norm: Whether its batch norm is to be over the whole batch, not over shares.
    """
    if count() == 1:
        return model
    network = DistributedDataParallel(model)
    if sync_batch_norm:
        # Not before: on a CPU DistributedDataParallel refuses such layers, though ours work there.
        layers.SyncBatchNorm.convert_sync_batchnorm(model)
    return network
