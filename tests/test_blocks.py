"""Formulas evaluated block by block give what they give in one go."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_ops import _blocks
from manual_ops import functional as F

IMAGE = (3, 4, 5, 6)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "silu": (F.silu, IMAGE, ()),
    "gelu": (F.gelu, IMAGE, ()),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), IMAGE, ()),
    "hardswish": (F.hardswish, IMAGE, ()),
    "elu": (lambda x: F.elu(x, 0.3), IMAGE, ()),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (5, 6), w, b), IMAGE, (5, 6)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, (4,)),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_the_same(
    name: str, layout: str, grad_layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, shape, parameter_shape = CALLS[name]
    x = LAYOUTS[layout](torch.randn(shape, dtype=dtype))
    leaves = [x, *(torch.randn(parameter_shape, dtype=dtype) for _ in range(2))]
    leaves = [t.detach().requires_grad_() for t in leaves[: 3 if parameter_shape else 1]]
    grad_output = LAYOUTS[grad_layout](torch.randn(shape, dtype=dtype))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(op(*leaves), leaves, grad_output)

    at_once = gradients()
    monkeypatch.setattr(_blocks, "_BLOCK", 7)  # 360 elements: the last block is a partial one
    by_blocks = gradients()
    for expected, found in zip(at_once, by_blocks, strict=True):
        tolerance: dict[str, Any] = {} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(found, expected, **tolerance)
        assert found.dtype == expected.dtype
