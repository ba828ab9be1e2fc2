"""SyncBatchNorm over two processes is batch norm over both batches, at every order."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad

from manual_ops import nn as manual_nn

PROCESSES = 2


@dataclass(frozen=True)
class Share:
    """How a batch is split, and how the layer is set up."""

    sizes: tuple[int, int]
    shape: tuple[int, ...] = ()
    affine: bool = True
    momentum: float | None = 0.1
    channels_last: bool = False


SHARES = {
    "equal": Share((3, 3), (2, 2)),
    "unequal": Share((2, 5), (3,)),
    "rows": Share((4, 3)),
    "one_value": Share((1, 4)),
    "empty": Share((0, 5), (2, 2)),
    "plain": Share((3, 2), affine=False, momentum=None),
    "channels_last": Share((2, 3), (2, 3), channels_last=True),
}
CHANNELS = 3


def layer(share: Share, namespace: object) -> nn.Module:
    """SyncBatchNorm on our side, batch norm on torch's, with the same parameters."""
    torch.manual_seed(0)
    name = "SyncBatchNorm" if namespace is manual_nn else f"BatchNorm{max(len(share.shape), 1)}d"
    norm = getattr(namespace, name)(CHANNELS, affine=share.affine, momentum=share.momentum)
    if share.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.double()


def batch(share: Share, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(share.sizes), CHANNELS, *share.shape)
    drawn = 10 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.contiguous(memory_format=torch.channels_last) if share.channels_last else drawn


def part_of(share: Share, whole: Tensor, rank: int | None) -> Tensor:
    return whole if rank is None else whole.split(share.sizes)[rank]


def derivatives(norm: nn.Module, share: Share, rank: int | None) -> dict[str, Tensor]:
    """Output, first and second derivatives by reverse mode, and forward mode; buffers.

    What is named a sum is to be added over the processes, the rest joined along the batch.
    """
    x, cotangent, direction = (part_of(share, batch(share, seed), rank) for seed in range(3))
    x = x.detach().requires_grad_()
    parameters = tuple(norm.parameters())
    output = norm(x)
    first = torch.autograd.grad(
        (output.sin() * cotangent).sum(), (x, *parameters), create_graph=True
    )
    along = sum(((g * d).sum() for g, d in zip(first, (direction, *parameters), strict=True)))
    second = torch.autograd.grad(along, (x, *parameters))
    buffers = {f"buffer {name}": value.clone() for name, value in norm.named_buffers()}
    with forward_ad.dual_level():  # torch.func refuses the update of the buffers
        tangent = forward_ad.unpack_dual(norm(forward_ad.make_dual(x.detach(), direction))).tangent
    names = ["x", *(f"sum {i}" for i in range(len(parameters)))]
    return (
        {"output": output.detach(), "tangent": tangent.detach()}
        | {f"{name} first": value.detach() for name, value in zip(names, first, strict=True)}
        | {f"{name} second": value for name, value in zip(names, second, strict=True)}
        | buffers
    )


def network(namespace: object) -> nn.Module:
    torch.manual_seed(0)
    return namespace.Sequential(
        namespace.Conv2d(1, 4, 3),
        namespace.BatchNorm2d(4),
        namespace.Flatten(),
        namespace.Linear(16, 5),
        namespace.BatchNorm1d(5),
    )


def network_gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model(images).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def images() -> Tensor:
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def work(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    try:
        found: dict[str, object] = {
            name: derivatives(layer(share, manual_nn), share, rank)
            for name, share in SHARES.items()
        }
        model = manual_nn.SyncBatchNorm.convert_sync_batchnorm(network(manual_nn))
        gradients = network_gradients(model, images().chunk(PROCESSES)[rank])
        # By hand: on a CPU DistributedDataParallel refuses any subclass of nn.SyncBatchNorm.
        for gradient in gradients:
            dist.all_reduce(gradient)
        found["network"] = [gradient / PROCESSES for gradient in gradients]
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process computed."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder / "store"), str(folder)), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", SHARES)
def test_is_batch_norm_of_the_whole_batch(name: str, found: list[dict]) -> None:
    share = SHARES[name]

    expected = derivatives(layer(share, nn), share, None)
    parts = [processes[name] for processes in found]
    assert parts[0].keys() == expected.keys()
    for key, value in expected.items():
        first, second = (part[key] for part in parts)
        if key.startswith("buffer"):
            assert torch.equal(first, second), key
            joined = first
        else:
            joined = first + second if key.startswith("sum") else torch.cat([first, second])
        torch.testing.assert_close(joined, value, msg=lambda text, key=key: f"{key}: {text}")


def test_output_and_gradient_keep_the_memory_format(found: list[dict]) -> None:
    for part in found:
        for key in ("output", "x first"):
            tensor = part["channels_last"][key]
            assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_data_parallel_network(found: list[dict]) -> None:
    """The gradients of a converted network, averaged, are those of one process."""
    expected = network_gradients(network(nn), images())
    for part in found:
        torch.testing.assert_close(part["network"], expected)


@pytest.mark.parametrize("namespace", [nn, manual_nn], ids=["torch.nn", "manual_ops.nn"])
@pytest.mark.parametrize("converter", [nn.SyncBatchNorm, manual_nn.SyncBatchNorm])
def test_convert_sync_batchnorm(namespace: object, converter: type[nn.SyncBatchNorm]) -> None:
    model = network(namespace).eval()
    before = dict(model.state_dict(keep_vars=True))
    converted = converter.convert_sync_batchnorm(model)
    assert [type(converted[i]) for i in (1, 4)] == [converter, converter]
    assert type(converted[0]) is namespace.Conv2d
    after = converted.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert not any(module.training for module in converted[1].modules())


def test_one_process_is_batch_norm() -> None:
    share = Share((4, 0), (2, 2))
    torch.testing.assert_close(
        derivatives(layer(share, manual_nn), share, None),
        derivatives(layer(share, nn), share, None),
    )


@pytest.mark.parametrize(
    ("input", "error"),
    [(torch.zeros(3), ValueError), (torch.zeros(2, 0), ValueError)],
    ids=["vector", "no_channel"],
)
def test_bad_input(input: Tensor, error: type[Exception]) -> None:
    messages = []
    for namespace in (nn, manual_nn):
        with pytest.raises(error) as caught:
            namespace.SyncBatchNorm(3)(input)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
