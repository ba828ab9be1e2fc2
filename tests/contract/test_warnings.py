"""Deprecated or doubtful calls warn as torch.nn's do, at the caller's line, and give its result."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from manual_ops import functional
from manual_ops.testing.draws import labels, normal, uniform

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = normal(5, 4).sample(GENERATOR)
CLASSES = labels(5, classes=4).sample(GENERATOR)
BETWEEN = uniform(5, 4, low=0.2, high=0.8).sample(GENERATOR)
TARGETS = {
    "nll_loss": CLASSES,
    "cross_entropy": CLASSES,
    "binary_cross_entropy": BETWEEN,
    "binary_cross_entropy_with_logits": BETWEEN,
    "mse_loss": BETWEEN,
}


def with_warnings(call: Callable[[], Tensor]) -> tuple[Tensor, list[Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = call()
    return output, [(warning.category, warning.filename) for warning in caught]


def assert_same(name: str, *args: Any, **kwargs: Any) -> None:
    """Same result, and warnings of the same categories, at this file where torch's are."""
    ours, our_warnings = with_warnings(lambda: getattr(functional, name)(*args, **kwargs))
    theirs, their_warnings = with_warnings(lambda: getattr(torch_functional, name)(*args, **kwargs))
    assert their_warnings
    for (category, file), (expected, their_file) in zip(our_warnings, their_warnings, strict=True):
        assert category is expected
        assert file == __file__ or their_file != __file__
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_implicit_dim(name: str, dims: int) -> None:
    assert_same(name, LOGITS[0].expand(*(2,) * (dims - 1), 4))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("size_average", [True, False, None])
@pytest.mark.parametrize("reduce", [True, False])
def test_size_average_and_reduce(name: str, size_average: bool | None, reduce: bool) -> None:
    assert_same(name, BETWEEN, TARGETS[name], size_average=size_average, reduce=reduce)


@pytest.mark.parametrize("name", TARGETS)
def test_reduction_by_its_former_name(name: str) -> None:
    assert_same(name, BETWEEN, TARGETS[name], reduction="elementwise_mean")


@pytest.mark.parametrize("shape", [(4,), (1, 4), (5, 1), (3, 5, 4)], ids=str)
def test_mse_loss_of_broadcast_shapes(shape: tuple[int, ...]) -> None:
    target = torch.linspace(0, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    assert_same("mse_loss", LOGITS, target)
    assert_same("mse_loss", LOGITS, target, reduction="none")


def test_mse_loss_gradient_of_broadcast_shapes() -> None:
    gradients = []
    for f in (functional, torch_functional):
        input, target = LOGITS.clone().requires_grad_(), BETWEEN[0].clone().requires_grad_()
        with pytest.warns(UserWarning, match="target size"):
            f.mse_loss(input, target).backward()
        gradients.append((input.grad, target.grad))
    torch.testing.assert_close(*gradients)
