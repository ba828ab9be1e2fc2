"""What layer_norm and group_norm share, beyond the contract tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from manual_ops import _blocks
from manual_ops import functional as F

CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer_norm": lambda f, x: f.layer_norm(x, (6, 8)),
    "group_norm": lambda f, x: f.group_norm(x, 2),
    "group_norm one position": lambda f, x: f.group_norm(x.flatten(1)[:, :12], 3),
    "batch_norm": lambda f, x: f.batch_norm(x, None, None, training=True),
}


def gradients(f: Any, call: Callable[[Any, Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    output = call(f, x)
    g = g.flatten(1)[:, : output[0].numel()].reshape(output.shape)
    return torch.autograd.grad(output, x, g)[0]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_gradients_are_as_accurate_far_from_0(
    call: Callable[[Any, Tensor], Tensor], mean: float
) -> None:
    """Sums of centred values: what is subtracted again does not cost the last digits."""
    torch.manual_seed(0)
    x, g = torch.randn(5, 4, 6, 8) + mean, torch.randn(5, 4, 6, 8)
    truth = gradients(torch_functional, call, x.double(), g.double())
    ours, theirs = (
        (gradients(f, call, x, g).double() - truth).abs().max() for f in (F, torch_functional)
    )
    assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("op", ["layer_norm", "group_norm"])
@pytest.mark.parametrize("compiled", [False, True])
def test_output_may_be_changed_in_place(op: str, compiled: bool) -> None:
    def loss(f: Any, x: Tensor) -> Tensor:
        return (CALLS[op](f, x).relu_() ** 2).sum()

    ours = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    x = torch.randn(5, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(call(f, x), x)[0] for call, f in ((ours, F), (loss, torch_functional))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_backward_under_autocast_keeps_float32(call: Callable[[Any, Tensor], Tensor]) -> None:
    x, g = torch.randn(5, 4, 6, 8), torch.randn(5, 4, 6, 8)
    expected = gradients(torch_functional, call, x, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(F, call, x, g)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("before", [1e6, float("inf")])
def test_running_statistics_forget_what_is_far_off(momentum: float, before: float) -> None:
    x = 0.01 * torch.randn(50, 2)
    moved = []
    for f in (F, torch_functional):
        running = torch.full((2,), before), torch.full((2,), before)
        f.batch_norm(x, *running, training=True, momentum=momentum)
        moved.append(running)
    torch.testing.assert_close(*moved, equal_nan=True)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batch_norm_by_blocks_is_as_accurate(
    mean: float, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By blocks of samples, whose sums are of centred values."""
    monkeypatch.setattr(_blocks, "_BLOCK", 1 << 14)  # several blocks, the last a partial one
    torch.manual_seed(0)
    x = (torch.randn(9, 16, 32, 32) + mean).to(memory_format=memory_format)
    weight, bias, g = torch.randn(16), torch.randn(16), torch.randn_like(x)

    def results(f: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        running = [torch.zeros(16, dtype=dtype), torch.ones(16, dtype=dtype)]
        output = f.batch_norm(leaves[0], *running, *leaves[1:], training=True)
        assert output.is_contiguous(memory_format=memory_format)
        gradients = torch.autograd.grad(output, leaves, g.to(dtype))
        assert gradients[0].is_contiguous(memory_format=memory_format)
        return [output.detach(), *running, *gradients]

    truth = results(torch_functional, torch.float64)
    ours, theirs = (
        [(found - true).abs().max() for found, true in zip(results(f, x.dtype), truth, strict=True)]
        for f in (F, torch_functional)
    )
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert our <= 2 * their + 1e-6 * true.abs().max()


VOLUME_CALLS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "group_norm": lambda f, x, w: f.group_norm(x, 2, w),
    "batch_norm training": lambda f, x, w: f.batch_norm(x, None, None, w, training=True),
    "batch_norm": lambda f, x, w: f.batch_norm(x, torch.zeros(4), torch.ones(4), w),
    "silu": lambda f, x, w: f.silu(x) * w[:, None, None, None],
}


@pytest.mark.parametrize("call", VOLUME_CALLS.values(), ids=VOLUME_CALLS)
@pytest.mark.parametrize("of_grad", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_volumes_keep_channels_last(
    call: Callable[[Any, Tensor, Tensor], Tensor],
    of_grad: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_blocks, "_BLOCK", 7)
    last = torch.channels_last_3d
    x, g = torch.randn(2, 2, 4, 3, 5, 6)
    x, w, g = x.to(memory_format=last), torch.rand(4), g.to(memory_format=of_grad)

    def results(f: Any) -> list[Tensor]:
        leaves = [x.detach().requires_grad_(), w.detach().requires_grad_()]
        output = call(f, *leaves)
        grad_input, grad_weight = torch.autograd.grad(output, leaves, g)
        assert output.is_contiguous(memory_format=last)
        assert f is torch_functional or grad_input.is_contiguous(memory_format=last)
        return [output, grad_input, grad_weight]

    torch.testing.assert_close(results(F), results(torch_functional))
