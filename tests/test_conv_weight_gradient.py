"""Every way to sum the weight gradient of a convolution gives the same gradient."""

import pytest
import torch

from manual_ops.ops import _conv_weight_gradient as ways

GENERAL = (ways._literally, ways._by_rows, ways._by_products)
CASES = [
    # way, in- and out-channels, groups, kernel, stride, padding, dilation
    *((way, 4, 6, 2, (3, 5), (2, 1), (1, 2), (1, 2)) for way in GENERAL),
    *((way, 3, 5, 1, (2, 2), (3, 2), (0, 1), (2, 1)) for way in GENERAL),
    (ways._by_planes, 4, 4, 4, (3, 3), (2, 1), (1, 0), (1, 2)),
    (ways._by_products, 4, 6, 2, (3,), (2,), (1,), (2,)),
    (ways._by_products, 4, 6, 2, (1, 1), (1, 1), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-groups{case[3]}")
def test_way(case):
    way, in_channels, out_channels, groups, kernel, *geometry = case
    size = (11, 10)[: len(kernel)]
    input = torch.randn(3, in_channels, *size, dtype=torch.float64)
    weight = torch.randn(
        out_channels, in_channels // groups, *kernel, dtype=torch.float64, requires_grad=True
    )
    none = (0,) * len(kernel)
    output = torch.convolution(input, weight, None, *geometry, False, none, groups)
    grad_output = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, weight, grad_output)
    gradient = way(grad_output, input, ways._Geometry(kernel, *geometry), groups)
    torch.testing.assert_close(gradient.reshape(weight.shape), expected)
