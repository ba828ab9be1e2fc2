"""Data-parallel and sharded training: two processes learn what one learns from both batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from manual_ops import nn

PROCESSES = 2


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def batches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(PROCESSES * 4, 1, 8, 8, generator=generator)
    return images, torch.randint(3, (PROCESSES * 4,), generator=generator)


def parallel(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    return DistributedDataParallel(model) if kind == "ddp" else fully_shard(model)


def whole(tensor: Any) -> Tensor:
    """The full tensor, gathered from its shards where it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_one_step(rank: int, kind: str, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    try:
        model = parallel(build(), kind)
        images, target = (tensor.chunk(PROCESSES)[rank] for tensor in batches())
        nn.CrossEntropyLoss()(model(images), target).backward()
        gradients = [whole(parameter.grad) for parameter in model.parameters()]
        if rank == 0:
            torch.save(gradients, results)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_gradients_are_those_of_the_whole_batch(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(
        train_one_step,
        (kind, str(tmp_path / "store"), str(tmp_path / "gradients.pt")),
        nprocs=PROCESSES,
    )
    model = build()
    images, target = batches()
    nn.CrossEntropyLoss()(model(images), target).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(torch.load(tmp_path / "gradients.pt"), expected)
