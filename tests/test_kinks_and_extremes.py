"""Documented values at kinks and ties, and at numbers that overflow or are not finite."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor, inf, nan

from manual_ops import functional as F

EXTREMES = [-inf, -1e30, -1e4, -80.0, -1e-30, -0.0, 0.0, 1e-30, 80.0, 1e4, 1e30, inf, nan, -nan]


def gradient(output: Tensor, input: Tensor, grad_output: Tensor | None = None) -> Tensor:
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    return torch.autograd.grad(output, input, grad_output)[0]


def test_relu_has_slope_0_at_0() -> None:
    x = torch.tensor([-0.0, 0.0], requires_grad=True)
    assert gradient(F.relu(x), x).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("slope", [0.01, 0.5, -0.5])
def test_leaky_relu_has_the_negative_slope_at_0(slope: float) -> None:
    x = torch.tensor([-0.0, 0.0], requires_grad=True)
    torch.testing.assert_close(gradient(F.leaky_relu(x, slope), x), torch.full((2,), slope))


KINKS = {
    "relu6": {0.0: 0, 6.0: 0},
    "hardsigmoid": {-3.0: 0, 3.0: 0},
    "hardswish": {-3.0: 0, 3.0: 1},
    "elu": {0.0: 1},
}


@pytest.mark.parametrize("op", KINKS)
def test_slope_at_the_kinks(op: str) -> None:
    """As documented, and as torch.nn has it; also in forward mode."""
    x = torch.tensor(list(KINKS[op]), requires_grad=True)
    expected = torch.tensor(list(KINKS[op].values()), dtype=x.dtype)
    assert torch.equal(gradient(getattr(F, op)(x), x), expected)
    assert torch.equal(gradient(getattr(torch_functional, op)(x), x), expected)
    tangent = torch.func.jvp(getattr(F, op), (x.detach(),), (torch.ones_like(x),))[1]
    assert torch.equal(tangent, expected)


@pytest.mark.parametrize("op", ["relu", "relu6", "hardsigmoid", "hardswish"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_slope_next_to_the_kinks(op: str, dtype: torch.dtype) -> None:
    """The numbers just before and after a kink are on its sides, as torch.nn has it."""
    kinks = torch.tensor([-3.0, 0.0, 3.0, 6.0], dtype=dtype)
    sides = [torch.nextafter(kinks, kinks + step) for step in (-1, 1)]
    x = torch.cat([kinks, *sides]).requires_grad_()
    ours, theirs = (gradient(getattr(f, op)(x), x) for f in (F, torch_functional))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours == 0, theirs == 0)


def test_gradient_of_hardswish_at_nan_is_nan() -> None:
    x = torch.tensor([nan], requires_grad=True)
    assert gradient(F.hardswish(x), x).isnan().all()


def test_softplus_is_linear_above_the_threshold_only() -> None:
    x = torch.tensor([2.0, 2.0001], dtype=torch.float64, requires_grad=True)
    at, above = gradient(F.softplus(x, beta=1, threshold=2), x).tolist()
    assert at == pytest.approx(0.8807970779778823)  # 1 / (1 + exp(-2))
    assert above == 1


def test_max_pool_ties_go_to_the_first_index() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    output, indices = F.max_pool2d(x, 2, return_indices=True)
    assert indices.flatten().tolist() == [0, 2, 8, 10]
    expected = torch.zeros(16)
    expected[[0, 2, 8, 10]] = 1
    assert torch.equal(gradient(output, x).flatten(), expected)


def test_max_pool_takes_nan_for_the_maximum() -> None:
    x = torch.tensor([[[[1.0, nan], [3.0, nan]]]], requires_grad=True)
    output = F.max_pool2d(x, 2)
    expected = gradient(torch_functional.max_pool2d(x, 2), x)
    assert output.isnan().all()
    assert torch.equal(gradient(output, x), expected)


@pytest.mark.parametrize(
    "op",
    [
        *("relu", "leaky_relu", "sigmoid", "tanh", "softplus", "log"),
        *("relu6", "elu", "gelu", "silu", "hardswish", "hardsigmoid"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad_output", [1.0, 0.0, inf, nan], ids=str)
def test_elementwise_at_extreme_inputs(op: str, grad_output: float, dtype: torch.dtype) -> None:
    """Values and gradients as torch.nn's, also where infinity or NaN comes back from above."""
    # torch.nn lets the gradient pass where the input of hardswish is NaN; ours is NaN.
    extremes = [x for x in EXTREMES if op != "hardswish" or x == x]
    x = torch.tensor(extremes, dtype=dtype, requires_grad=True)
    reference = torch.log if op == "log" else getattr(torch_functional, op)
    ours, theirs = getattr(F, op)(x), reference(x)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    above = torch.full_like(x, grad_output)
    torch.testing.assert_close(gradient(ours, x, above), gradient(theirs, x, above), equal_nan=True)


@pytest.mark.parametrize("op", ["relu", "relu6", "elu", "gelu", "silu", "hardswish", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_slope_at_denormal_inputs(op: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = (tiny * torch.tensor([-3.0, -1, 1, 2, 3, 7, 1e5], dtype=dtype)).requires_grad_()
    ours, theirs = (gradient(getattr(f, op)(x), x) for f in (F, torch_functional))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "op", [F.silu, partial(F.gelu, approximate="tanh")], ids=["silu", "gelu_tanh"]
)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_slope_far_from_0(
    op: Callable[..., Tensor], create_graph: bool, dtype: torch.dtype
) -> None:
    """It comes to 1 and to 0, by neither formula with cancellation or overflow on the way."""
    far = torch.tensor([60.0, 100, 1000, 1e8, 1e14, 1e18, 1e20, 1e30], dtype=dtype)
    x = torch.cat([far, -far]).requires_grad_()
    (slope,) = torch.autograd.grad(op(x).sum(), x, create_graph=create_graph)
    torch.testing.assert_close(slope, (x > 0).to(dtype))


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    "row",
    [[1e4, -1e4, 0.0], [1e30, 1e30, 0.0], [-inf, 0.0, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0]],
    ids=str,
)
def test_softmax_at_extreme_inputs(op: str, row: list[float]) -> None:
    x = torch.tensor([row], requires_grad=True)
    ours, theirs = getattr(F, op)(x, 1), getattr(torch_functional, op)(x, 1)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"weight": [1.0, 2.0, 3.0]}], ids=str
)
def test_cross_entropy_of_huge_logits_is_finite(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    options = {k: torch.tensor(v, dtype=dtype) if k == "weight" else v for k, v in options.items()}
    x = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    for target in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        loss = F.cross_entropy(x, target, **options)
        found = gradient(loss, x)
        assert loss.isfinite()
        assert found.isfinite().all()
        expected = torch_functional.cross_entropy(x, target, **options)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(found, gradient(expected, x))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("op", ["nll_loss", "cross_entropy", "linear_cross_entropy"])
def test_labels_of_one_byte_that_equal_the_ignored_index_modulo_256(
    op: str, create_graph: bool, reduction: str
) -> None:
    """-100 would be 156 in uint8: a class as good as the others."""
    labels = torch.tensor([156, 3])
    x = torch.randn(2, 200, requires_grad=True)
    more = (torch.eye(200),) if op == "linear_cross_entropy" else ()
    losses = [
        getattr(F, op)(x, *more, target, reduction=reduction) for target in (labels, labels.byte())
    ]
    torch.testing.assert_close(losses[1], losses[0])
    expected, found = (
        torch.autograd.grad(loss.sum(), x, create_graph=create_graph)[0] for loss in losses
    )
    torch.testing.assert_close(found, expected)
    assert expected[0, 156] < 0


def test_cross_entropy_of_huge_logits_by_hand() -> None:
    """The right class at +1e4: no loss. The wrong one: a loss of the difference, 2e4."""
    x = torch.tensor([[1e4, -1e4]], dtype=torch.float64, requires_grad=True)
    assert F.cross_entropy(x, torch.tensor([0])).item() == 0
    wrong = F.cross_entropy(x, torch.tensor([1]))
    assert wrong.item() == 2e4
    assert gradient(wrong, x).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_binary_cross_entropy_of_huge_logits_is_finite(target: float) -> None:
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    labels = torch.full_like(x, target)
    ours = F.binary_cross_entropy_with_logits(x, labels, reduction="none")
    theirs = torch_functional.binary_cross_entropy_with_logits(x, labels, reduction="none")
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x))


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_binary_cross_entropy_at_certainty(target: float) -> None:
    """Probabilities 0 and 1: the logarithm is clamped at -100, as in torch.nn."""
    x = torch.tensor([0.0, 1e-30, 0.5, 1.0], requires_grad=True)
    labels = torch.full_like(x, target)
    ours = F.binary_cross_entropy(x, labels, reduction="none")
    theirs = torch_functional.binary_cross_entropy(x, labels, reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x))


@pytest.mark.parametrize("bad", [inf, nan])
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.linear(x, torch.ones(2, 3)),
        lambda f, x: f.conv1d(x.unsqueeze(0), torch.ones(1, 2, 2)),
        lambda f, x: f.batch_norm(x, None, None, training=True),
        lambda f, x: f.mse_loss(x, torch.zeros(2, 3), reduction="none"),
        lambda f, x: f.avg_pool2d(x.unsqueeze(0), 2),
        lambda f, x: f.max_pool2d(x.unsqueeze(0), 2),
        lambda f, x: f.cross_entropy(x, torch.tensor([0, 1]), reduction="none"),
    ],
    ids=["linear", "conv1d", "batch_norm", "mse_loss", "avg_pool2d", "max_pool2d", "cross_entropy"],
)
def test_non_finite_inputs_propagate(call: Callable[[Any, Tensor], Tensor], bad: float) -> None:
    x = torch.tensor([[1.0, bad, 2.0], [3.0, 4.0, 5.0]], requires_grad=True)
    ours, theirs = call(F, x), call(torch_functional, x)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x), equal_nan=True)
