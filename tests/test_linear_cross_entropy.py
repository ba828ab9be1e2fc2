"""Linear cross-entropy in many chunks, its gradients from forward, and what it never holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.utils._python_dispatch import TorchDispatchMode

from manual_ops.functional import linear_cross_entropy
from manual_ops.testing import assert_op_ok
from tests.harness import random_like

ROWS, FEATURES, CLASSES = 23, 4, 11
CHUNKS = LinearCrossEntropyOptions(batch_chunk_size=5)
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum", "label_smoothing": 0.2},
    "none": {"reduction": "none", "label_smoothing": 0.2},
    "ignore_index": {"ignore_index": 3},
    "weight": {"weight": torch.linspace(0.2, 2, CLASSES, dtype=torch.float64)},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and target."""
    shapes = (ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)
    tensors = (random_like(torch.empty(shape, dtype=dtype), i) for i, shape in enumerate(shapes))
    input, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    return input, weight, bias, torch.arange(ROWS) % CLASSES


COMPILED = ("compile", "compile, other batch size", "compiled transforms")


@each_setting
def test_many_chunks(settings: dict[str, Any]) -> None:
    """Every check of the checker: all orders, modes and transforms, against torch's reference."""
    input, weight, bias, target = inputs()

    def chunked(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            input, weight, target, linear_bias=bias, options=CHUNKS, **settings
        )

    def whole(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear_cross_entropy(input, weight, target, linear_bias=bias, **settings)

    skip = COMPILED if settings else ()  # one will do, they take a while
    assert_op_ok(chunked, input, weight, bias, reference=whole, skip=skip)


def test_a_kept_graph_keeps_its_gradients() -> None:
    """Neither a second backward nor what the caller does to a gradient changes the next one."""
    input, weight, bias, target = inputs()
    tensors = input, weight, bias
    loss = linear_cross_entropy(input, weight, target, linear_bias=bias, options=CHUNKS)
    first = torch.autograd.grad(loss, tensors, torch.tensor(3.0).double(), retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    loss.backward(torch.tensor(3.0).double(), retain_graph=True)
    for tensor in tensors:
        tensor.grad.mul_(2)
    loss.backward(torch.tensor(3.0).double())
    for tensor, once in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, 3 * once)


def test_orders_of_differentiation() -> None:
    """A graph kept, differentiated twice, then plainly: each is as if it were the only one."""
    input, weight, bias, target = inputs()
    tensors = input, weight, bias

    def each_in_turn(loss: Tensor) -> list[Tensor]:
        kept = torch.autograd.grad(loss, tensors, retain_graph=True)
        graph = torch.autograd.grad(loss, tensors, create_graph=True)
        total = sum(gradient.square().sum() for gradient in graph)
        second = torch.autograd.grad(total, tensors, retain_graph=True)
        return [*kept, *graph, *second, *torch.autograd.grad(loss * 2, tensors)]

    found = each_in_turn(
        linear_cross_entropy(input, weight, target, linear_bias=bias, options=CHUNKS)
    )
    expected = each_in_turn(F.linear_cross_entropy(input, weight, target, linear_bias=bias))
    torch.testing.assert_close(found, expected)


class _Sizes(TorchDispatchMode):
    """The largest number of elements of any result."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@contextmanager
def sizes() -> Iterator[_Sizes]:
    with _Sizes() as mode:
        yield mode


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_never_holds_the_logits(reduction: str) -> None:
    input, weight, bias, target = inputs()
    with sizes() as seen:
        loss = linear_cross_entropy(
            input, weight, target, linear_bias=bias, reduction=reduction, options=CHUNKS
        )
        loss.sum().backward()
    assert seen.largest == max(input.numel(), CHUNKS.batch_chunk_size * CLASSES)


def test_default_chunks_are_a_part_of_large_inputs() -> None:
    input, weight = torch.randn(1000, 6, requires_grad=True), torch.randn(5000, 6)
    target = torch.arange(1000)
    with sizes() as seen:
        linear_cross_entropy(input, weight, target).backward()
    assert seen.largest < 1000 * 5000


def test_half_precision_is_summed_in_float32() -> None:
    """A thousand chunks are no less accurate than one."""
    input, weight = torch.randn(2, 1000, 3).bfloat16()
    target = torch.arange(1000)
    options = LinearCrossEntropyOptions(batch_chunk_size=1)

    def gradient(dtype: torch.dtype, op: Any, **settings: Any) -> Tensor:
        leaf = weight.to(dtype).requires_grad_()
        loss = op(input.to(dtype), leaf, target, **settings)
        return torch.autograd.grad(loss, leaf)[0].double()

    truth = gradient(torch.float64, F.linear_cross_entropy)
    theirs = gradient(torch.bfloat16, F.linear_cross_entropy) - truth
    ours = gradient(torch.bfloat16, linear_cross_entropy, options=options) - truth
    assert ours.abs().max() < 2 * theirs.abs().max()
