"""Integer and complex inputs: as torch.nn, or a clear refusal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from manual_ops import functional
from tests.harness import random_like

Call = Callable[[Any], Tensor | tuple[Tensor, ...]]


INTEGERS = torch.arange(-8, 8).reshape(1, 1, 4, 4)
INTEGER_CALLS: dict[str, Call] = {
    "linear": lambda f: f.linear(INTEGERS, INTEGERS[0, 0], INTEGERS[0, 0, 0]),
    "relu": lambda f: f.relu(INTEGERS),
    "sigmoid": lambda f: f.sigmoid(INTEGERS),
    "tanh": lambda f: f.tanh(INTEGERS),
    "softmax": lambda f: f.softmax(INTEGERS, -1, dtype=torch.float32),
    "conv2d": lambda f: f.conv2d(INTEGERS, INTEGERS[..., :2, :2], padding=1),
    "max_pool2d": lambda f: f.max_pool2d(INTEGERS, 2, return_indices=True),
    "avg_pool2d": lambda f: f.avg_pool2d(INTEGERS, 2),
    "dropout": lambda f: f.dropout(INTEGERS, training=False),
    "byte_target": lambda f: f.cross_entropy(INTEGERS[0, 0].double(), torch.ones(4).byte()),
    "byte_target_smoothed": lambda f: f.cross_entropy(
        INTEGERS[0, 0].double(), torch.ones(4).byte(), label_smoothing=0.1
    ),
}


@pytest.mark.parametrize("name", INTEGER_CALLS)
def test_integers_that_torch_accepts(name: str) -> None:
    call = INTEGER_CALLS[name]
    torch.testing.assert_close(call(functional), call(torch_functional))


COMPLEX_CASES = {
    "linear": ((3, 4), (2, 4), (2,)),
    "conv1d": ((2, 3, 5), (4, 3, 2), (4,)),
    "conv2d": ((2, 3, 4, 4), (4, 3, 2, 2), (4,)),
    "sigmoid": ((3,),),
    "tanh": ((3,),),
    "log": ((3,),),
    "dropout": ((20,),),
}


@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_complex_numbers(name: str) -> None:
    tensors = [
        torch.randn(shape, dtype=torch.complex128, requires_grad=True)
        for shape in COMPLEX_CASES[name]
    ]

    def gradients(op: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        output = op(*tensors)
        cotangent = torch.complex(random_like(output.real, 1), random_like(output.real, 2))
        return torch.autograd.grad(output, tensors, cotangent)

    expected = gradients(torch.log if name == "log" else getattr(torch_functional, name))
    torch.testing.assert_close(gradients(getattr(functional, name)), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("linear", {}),
        ("conv1d", {"stride": 2, "padding": 1}),
        ("conv2d", {"stride": (1, 2), "padding": "valid", "dilation": (2, 1)}),
    ],
    ids=["linear", "conv1d", "conv2d"],
)
def test_derivatives_of_complex_numbers(name: str, settings: dict[str, Any]) -> None:
    """Values, both modes, both orders, vmap, as for real numbers: conjugates in their places."""
    tensors = [
        torch.randn(shape, dtype=torch.complex128, requires_grad=True)
        for shape in COMPLEX_CASES[name]
    ]

    def function(*args: Tensor) -> Tensor:
        return getattr(functional, name)(*args, **settings)

    expected = getattr(torch_functional, name)(*tensors, **settings)
    torch.testing.assert_close(function(*tensors), expected)
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)
    stacked = [torch.stack([t, 2 * t]).detach() for t in tensors]
    found = torch.func.vmap(function)(*stacked)
    torch.testing.assert_close(found[0], expected)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), expected)
