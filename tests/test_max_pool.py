"""Max pooling by columns is ATen's own, to the position, for every geometry and for odd values."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from benchmarks.measure import saved_bytes
from manual_ops import functional as F
from manual_ops.ops import max_pool

VALUES = {
    "normal": lambda x: x,
    "tied": lambda x: x.round(),
    "infinite": lambda x: x.masked_fill(x < 0.5, -math.inf),
    "nan": lambda x: x.masked_fill(x > 0.5, math.nan),
}
GEOMETRIES = list(
    itertools.product(
        [2, (3, 2), (1, 4)],  # kernel
        [None, 1, (2, 3)],  # stride
        [0, 1, (1, 0)],  # padding
        [1, (1, 2)],  # dilation
        [False, True],  # ceil mode
    )
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", [(3, 2, 7, 9), (2, 6, 5)], ids=str)
def test_columns(monkeypatch, shape, values, dtype):
    monkeypatch.setattr(max_pool, "_SMALL", 0)
    compared = 0
    for geometry in GEOMETRIES:
        input = VALUES[values](torch.randn(shape)).to(dtype)
        try:
            expected, positions = functional.max_pool2d(input, *geometry, return_indices=True)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                F.max_pool2d(input, *geometry)
            continue
        output, indices = F.max_pool2d(input, *geometry, return_indices=True)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(indices, positions), geometry
        compared += 1
    assert compared > len(GEOMETRIES) // 3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("width", "size"), [(254, 1), (255, 2), (40_000, 4)], ids=["byte", "short", "int"]
)
def test_distances_take_as_many_bytes_as_they_need(width, size, memory_format):
    input = torch.randn(1, 2, 4, width).to(memory_format=memory_format).requires_grad_()
    output, indices = F.max_pool2d(input, 2, return_indices=True)
    assert saved_bytes(lambda: F.max_pool2d(input, 2)) == size * output.numel()
    assert torch.equal(indices, functional.max_pool2d(input, 2, return_indices=True)[1])
    (gradient,) = torch.autograd.grad(output.sum(), input)
    assert torch.equal(gradient.sum((2, 3)), torch.full((1, 2), float(output[0, 0].numel())))
    assert torch.equal(input[gradient == 1].sort()[0], output.flatten().sort()[0])


def test_output_can_be_changed_in_place() -> None:
    """By either way of finding the maxima: the output is no view of something hidden."""
    for size in (4, 64):
        x = torch.randn(4, 8, size, size, dtype=torch.float64, requires_grad=True)
        F.max_pool2d(x, 2).relu_().sum().backward()
        (expected,) = torch.autograd.grad(functional.max_pool2d(x, 2).relu().sum(), x)
        assert torch.equal(x.grad, expected)
