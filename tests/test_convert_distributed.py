"""Converting before and after data-parallel wrapping and sharding; two processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from manual_ops import convert
from manual_ops import nn as manual_nn
from tests.test_distributed import PROCESSES, batches, whole


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 6), nn.Tanh()),
        nn.Linear(6, 3),
    )


def ddp_last() -> nn.Module:
    return DistributedDataParallel(convert(build()).model)


def ddp_first() -> nn.Module:
    model = DistributedDataParallel(build())
    model(batches()[0])  # its reducer and hooks are set up by now
    return convert(model, inplace=True).model


def fsdp_last() -> nn.Module:
    return _sharded(convert(build()).model)


def fsdp_first() -> nn.Module:
    model = _sharded(build())
    with pytest.raises(AssertionError, match="deepcopy"):
        convert(model)
    return convert(model, inplace=True).model


def _sharded(model: nn.Module) -> nn.Module:
    fully_shard(model[4])
    return fully_shard(model)


LAYERS = (nn.Conv2d, nn.Linear, nn.Tanh)
ORDERS: dict[str, Callable[[], nn.Module]] = {
    order.__name__: order for order in (ddp_last, ddp_first, fsdp_last, fsdp_first)
}


def gradients(model: nn.Module, images: Tensor, target: Tensor) -> list[Tensor]:
    nn.functional.cross_entropy(model(images), target).backward()
    return [whole(parameter.grad) for parameter in model.parameters()]


def step(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    try:
        found = {}
        for name, order in ORDERS.items():
            model = order()
            found[name] = (
                [type(m) for m in model.modules() if isinstance(m, LAYERS)],
                gradients(model, *(tensor.chunk(PROCESSES)[rank] for tensor in batches())),
            )
        if rank == 0:
            torch.save(found, results)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[type], list[Tensor]]]:
    """By order: the classes of the layers, and the gradients that process 0 ends up with."""
    folder = tmp_path_factory.mktemp("two_processes")
    results = folder / "results.pt"
    torch.multiprocessing.spawn(step, (str(folder / "store"), str(results)), nprocs=PROCESSES)
    return torch.load(results, weights_only=False)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_those_of_the_whole_batch(
    order: str, trained: dict[str, tuple[list[type], list[Tensor]]]
) -> None:
    kinds, found = trained[order]
    assert kinds == [manual_nn.Conv2d, manual_nn.Linear, manual_nn.Tanh, manual_nn.Linear]
    torch.testing.assert_close(found, gradients(build(), *batches()))


def test_layer_sharded_as_a_unit_is_left_alone(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build()
        fully_shard(model[5])
        _, report = convert(model, inplace=True)
        (left,) = report.left
        assert (left.name, left.note) == ("5", "subclass of torch.nn.Linear")
        assert isinstance(model[5], FSDPModule)
    finally:
        dist.destroy_process_group()


def test_wrapped_model_is_copied_and_verified(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(build())
        ours, report = convert(model, verify=True, inputs=batches()[0])
        assert type(model.module[5]) is nn.Linear
        assert type(ours.module[5]) is manual_nn.Linear
        assert report.differences is not None
        assert report.differences["gradients"].relative < 1e-5
    finally:
        dist.destroy_process_group()
