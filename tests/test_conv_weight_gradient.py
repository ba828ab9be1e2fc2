"""Every way to sum the weight gradient of a convolution gives the same gradient."""

import pytest
import torch

from manual_ops import functional as F
from manual_ops.ops import _conv_weight_gradient as ways

GENERAL = (ways._literally, ways._by_rows, ways._by_products)
CASES = [
    # way, in- and out-channels, groups, kernel, stride, padding, dilation
    *((way, 4, 6, 2, (3, 5), (2, 1), (1, 2), (1, 2)) for way in GENERAL),
    *((way, 3, 5, 1, (2, 2), (3, 2), (0, 1), (2, 1)) for way in GENERAL),
    (ways._by_planes, 4, 4, 4, (3, 3), (2, 1), (1, 0), (1, 2)),
    (ways._by_pixels, 4, 6, 1, (3, 5), (2, 1), (1, 2), (1, 2)),
    (ways._by_pixels, 3, 5, 1, (2, 2), (3, 2), (0, 1), (2, 1)),
    (ways._by_pixels, 4, 6, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    (ways._by_taps, 4, 6, 1, (3, 5), (1, 1), (1, 2), (1, 2)),
    (ways._by_taps, 3, 5, 1, (2, 2), (1, 1), (0, 1), (2, 1)),
    (ways._by_products, 4, 6, 2, (3,), (2,), (1,), (2,)),
    (ways._by_products, 4, 6, 2, (1, 1), (1, 1), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-groups{case[3]}")
def test_way(case):
    assert_gives_the_gradient(case)


def assert_gives_the_gradient(case, memory_format=torch.contiguous_format):
    way, in_channels, out_channels, groups, kernel, *geometry = case
    size = (11, 10)[: len(kernel)]
    input = torch.randn(3, in_channels, *size, dtype=torch.float64)
    input = input.contiguous(memory_format=memory_format)
    weight = torch.randn(
        out_channels, in_channels // groups, *kernel, dtype=torch.float64, requires_grad=True
    )
    none = (0,) * len(kernel)
    output = torch.convolution(input, weight, None, *geometry, False, none, groups)
    grad_output = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, weight, grad_output)
    gradient = way(grad_output, input, ways._Geometry(kernel, *geometry), groups)
    torch.testing.assert_close(gradient.reshape(weight.shape), expected)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("channels", [(16, 96), (256, 1024), (512, 256)])
def test_strides_of_a_kernel_of_one_position(size, channels):
    """Those of the weight: for others DDP warns."""
    weight = torch.randn(*channels, 1, 1, requires_grad=True)
    F.conv2d(torch.randn(2, channels[1], size, size), weight).sum().backward()
    assert weight.grad.stride() == weight.stride()


LAYOUTS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=str
)


@pytest.mark.parametrize("at_a_time", [1, 200, 3000])  # a line, some lines, some samples
@LAYOUTS
def test_by_pixels_in_blocks(at_a_time, memory_format, monkeypatch):
    monkeypatch.setattr(ways, "_WINDOWS", at_a_time)
    case = (ways._by_pixels, 4, 6, 1, (3, 5), (2, 1), (1, 2), (1, 2))
    assert_gives_the_gradient(case, memory_format)


@pytest.mark.parametrize("at_a_time", [1, 4000])  # a sample, two of three
@LAYOUTS
def test_by_taps_in_blocks(at_a_time, memory_format, monkeypatch):
    monkeypatch.setattr(ways, "_GRIDS", at_a_time)
    case = (ways._by_taps, 4, 6, 1, (3, 5), (1, 1), (1, 2), (1, 2))
    assert_gives_the_gradient(case, memory_format)


SUITABLE = [  # way, in- and out-channels, kernel, stride, size, memory format
    ("_by_pixels", 128, 128, 3, 1, 6, torch.contiguous_format),
    ("_by_pixels", 64, 128, 3, 2, 6, torch.contiguous_format),
    ("_by_taps", 16, 24, 3, 1, 23, torch.channels_last),
]


@pytest.mark.parametrize("case", SUITABLE, ids=str)
def test_where_it_pays(case, monkeypatch):
    """In a plain backward pass; in others by a way that can be differentiated."""
    name, in_channels, out_channels, kernel, stride, size, memory_format = case
    input = torch.randn(2, in_channels, size, size, dtype=torch.float64)
    input = input.contiguous(memory_format=memory_format)
    weight = torch.randn(out_channels, in_channels, kernel, kernel, dtype=torch.float64) / 30
    weight.requires_grad_()
    taken = []
    way = getattr(ways, name)
    monkeypatch.setattr(ways, name, lambda *args: taken.append(1) or way(*args))

    def results(f, create_graph):
        loss = (f(input, weight, stride=stride, padding=1) ** 3).sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=create_graph)
        if not create_graph:
            return gradient
        assert not taken
        return [gradient, *torch.autograd.grad(gradient.sum(), weight)]

    for create_graph, plain_passes in ((False, 1), (True, 1)):  # the second order ends in one
        expected = results(torch.nn.functional.conv2d, create_graph)
        torch.testing.assert_close(results(F.conv2d, create_graph), expected)
        assert len(taken) == plain_passes
        taken.clear()
