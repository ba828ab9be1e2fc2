"""The ops against the loops of ``tests.reference``: values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from manual_ops import functional
from tests import reference


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def check(output: Tensor, inputs: tuple[Tensor, ...], value: Any, gradients: Any) -> None:
    """Compare with the nested lists of the reference.

    Args:
        output: The op's output.
        inputs: The tensors that the gradients are for.
        value: The reference's output.
        gradients: From the gradient of the output, as lists, to those of ``inputs``.
    """
    torch.testing.assert_close(output, torch.tensor(value, dtype=torch.float64))
    grad_output = torch.randn_like(output)
    found = torch.autograd.grad(output, inputs, grad_output)
    expected = gradients(grad_output.tolist())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))


def test_linear() -> None:
    x, w, b = normal(3, 4), normal(2, 4), normal(2)
    check(
        functional.linear(x, w, b),
        (x, w, b),
        reference.linear(x.tolist(), w.tolist(), b.tolist()),
        lambda g: reference.linear_gradients(x.tolist(), w.tolist(), g),
    )


def test_relu() -> None:
    x = normal(3, 4)
    with torch.no_grad():
        x[0, 0] = 0
    check(
        functional.relu(x),
        (x,),
        reference.relu(x.tolist()),
        lambda g: (reference.relu_gradient(x.tolist(), g),),
    )


def test_softmax_loss() -> None:
    x, target = normal(5, 3), [2, 0, 1, 1, 2]
    check(
        functional.cross_entropy(x, torch.tensor(target)),
        (x,),
        reference.softmax_loss(x.tolist(), target),
        lambda g: (reference.softmax_loss_gradient(x.tolist(), target, g),),
    )


def test_batch_norm() -> None:
    x, w, b = normal(2, 3, 2, 3), normal(3), normal(3)
    check(
        functional.batch_norm(x, None, None, w, b, training=True, eps=1e-3),
        (x, w, b),
        reference.batch_norm(x.tolist(), w.tolist(), b.tolist(), 1e-3),
        lambda g: reference.batch_norm_gradients(x.tolist(), w.tolist(), g, 1e-3),
    )


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (3, 1, 1, 2), (2, 3, 2, 4)],
)
def test_conv2d(stride: int, padding: int, dilation: int, groups: int) -> None:
    x, w, b = normal(2, 4, 5, 6), normal(4, 4 // groups, 3, 2), normal(4)
    settings = (stride, padding, dilation, groups)
    check(
        functional.conv2d(x, w, b, *settings),
        (x, w, b),
        reference.conv2d(x.tolist(), w.tolist(), b.tolist(), *settings),
        lambda g: reference.conv2d_gradients(x.tolist(), w.tolist(), g, *settings),
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0), (2, 3, 1)]
)
def test_max_pool2d(kernel: int, stride: int, padding: int) -> None:
    x = normal(2, 2, 5, 6)
    with torch.no_grad():
        x.round_()  # many ties
    settings = (kernel, stride, padding)
    check(
        functional.max_pool2d(x, *settings),
        (x,),
        reference.max_pool2d(x.tolist(), *settings)[0],
        lambda g: (reference.max_pool2d_gradient(x.tolist(), g, *settings),),
    )
