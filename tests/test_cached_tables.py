"""Constant tensors that ops keep between calls are only ever plain numbers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from manual_ops import functional

OPS = {
    "max_pool2d": {"kernel_size": 3, "stride": 2, "padding": 1},
    "adaptive_avg_pool2d": {"output_size": 6},
}


def slope(op: Callable[..., Tensor], input: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(op(input).square().sum(), input)
    return grad


def faked(op: Callable[..., Tensor], input: Tensor) -> None:
    with FakeTensorMode() as mode:
        slope(op, mode.from_tensor(input))


def mapped(op: Callable[..., Tensor], input: Tensor) -> None:
    torch.func.vmap(torch.func.grad(lambda x: op(x).square().sum()))(input)


def inferred(op: Callable[..., Tensor], input: Tensor) -> None:
    with torch.inference_mode():
        op(input)


# A size for each, so that none finds what another has left.
@pytest.mark.parametrize(("before", "size"), [(faked, 13), (mapped, 15), (inferred, 17)])
@pytest.mark.parametrize("name", OPS)
def test_gradient_after(name: str, before: Callable[..., None], size: int) -> None:
    ours, theirs = (
        partial(getattr(f, name), **OPS[name]) for f in (functional, torch.nn.functional)
    )
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, size, size, generator=generator).requires_grad_()
    before(ours, input)
    grad = slope(ours, input)
    assert type(grad) is Tensor
    assert not grad.is_inference()
    torch.testing.assert_close(grad, slope(theirs, input))
