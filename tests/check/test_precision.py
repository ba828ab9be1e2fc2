"""The checks of accuracy: losing digits is found, needing them is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from manual_ops import check
from manual_ops.check import Row

GENERATOR = torch.Generator().manual_seed(0)
POINT = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
LONG = torch.randn(2, 3000, generator=GENERATOR, dtype=torch.float64)
LOW = ("bfloat16", "float16")

VALUES, GRADIENTS = "values against reference", "gradients against reference"


def _rows(name: str, fn: Any, *inputs: Any, **settings: Any) -> dict[str, Row]:
    return {row.subject: row for row in check(fn, *inputs, only=[name], **settings)[name]}


def _verdicts(*args: Any, **settings: Any) -> dict[str, str]:
    return {subject: row.verdict for subject, row in _rows(*args, **settings).items()}


def _naive_variance(input: Tensor) -> Tensor:
    """A difference of large numbers that nothing calls for."""
    return (input * input).mean(-1) - input.mean(-1) ** 2


def _centred_variance(input: Tensor) -> Tensor:
    return (input - input.mean(-1, keepdim=True)).square().mean(-1)


class _Square(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input * input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output * ctx.saved_tensors[0]


class _GradientInBfloat16(_Square):
    """A gradient with eight bits, unless the inputs have all."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if grad_output.dtype == torch.float64:
            return _Square.backward(ctx, grad_output)
        product = 2 * grad_output.bfloat16() * ctx.saved_tensors[0].bfloat16()
        return product.to(grad_output.dtype)


class _Promotes(_Square):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return _Square.forward(ctx, input).double()


class _KnowsNoHalf(_Square):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        if input.dtype == torch.float16:
            raise TypeError("no half\nat all")
        return _Square.forward(ctx, input)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (_Square, (POINT,)),
        (F.linear, (LONG, LONG + 1)),
        (F.softmax, (10 * LONG, -1)),
        (F.layer_norm, (LONG + 5, (3000,))),
        (F.cross_entropy, (POINT, torch.tensor([1, 0, 3]))),
        (torch.prod, (LONG[0, :50],)),
        (_centred_variance, (LONG + 10,)),
        (lambda input: (input.exp(), input.argmax()), (POINT,)),
    ],
    ids=["square", "linear", "softmax", "layer_norm", "loss", "prod", "variance", "several"],
)
def test_right_ops_pass(fn: Any, inputs: tuple[Any, ...], dtype: torch.dtype) -> None:
    first, *others = (x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
                      for x in inputs)  # fmt: skip
    assert set(_verdicts("precision", fn, first, *others).values()) == {"pass"}


def _mlp() -> nn.Module:
    """The gradient of its first bias is zero but for rounding."""
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", [_mlp, lambda: nn.MultiheadAttention(4, 2)], ids=["mlp", "mha"])
def test_modules_pass(build: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    module = build()
    inputs = [POINT.float()] * (3 if isinstance(module, nn.MultiheadAttention) else 1)
    assert _verdicts("precision", module, *inputs) == dict.fromkeys(("float32", *LOW), "pass")


def test_lost_digits_are_found() -> None:
    rows = _rows("precision", _naive_variance, LONG + 30)
    assert all(row.failed for row in rows.values())
    assert rows["float32"].where.startswith("output")
    assert "allowed is an error of" in rows["float32"].detail
    rows = _rows("precision", _GradientInBfloat16, POINT)
    assert {subject for subject, row in rows.items() if row.failed} == {"float32"}
    assert rows["float32"].where.startswith("gradient of input")


def test_refused_dtypes_are_named() -> None:
    rows = _rows("precision", _KnowsNoHalf, POINT)
    assert [row.verdict for row in rows.values()] == ["pass", "pass", "n/a"]
    assert rows["float16"].detail == "refused: TypeError: no half"


def test_silent_promotion() -> None:
    assert set(_verdicts("precision", _Promotes, POINT.float()).values()) == {"FAIL"}
    row = _rows("precision", _Promotes, POINT.float())["float32"]
    assert row.detail == "output is float64 of inputs in float32"
    # Numbers that a callable has captured may promote as they like; asking for a dtype is allowed.
    factor = POINT[0]
    captured = _verdicts("precision", lambda input: input * factor, POINT)
    assert set(captured.values()) == {"n/a"}
    asked = {"dim": 1, "dtype": torch.float64}
    assert set(_verdicts("precision", F.softmax, POINT, keywords=asked).values()) == {"pass"}


def test_no_reference() -> None:
    for name in (VALUES, GRADIENTS):
        assert _verdicts(name, _Square, POINT) == {"": "n/a"}


@pytest.mark.parametrize(
    ("fn", "failing"),
    [
        (torch.square, ()),
        (lambda input: 1.01 * input.square(), (VALUES, GRADIENTS)),
        (lambda input: input.square().double(), (VALUES,)),
        (lambda input: input.square().T.contiguous().T, (VALUES, GRADIENTS)),
        (lambda input: input.square()[None], (VALUES,)),
        (lambda input: (input.square(), input.argmax()), (VALUES,)),
        (_Square, ()),
        (_GradientInBfloat16, (GRADIENTS,)),
        (_KnowsNoHalf, (VALUES, GRADIENTS)),
    ],
    ids=["same", "factor", "dtype", "strides", "shape", "outputs", "function", "digits", "half"],
)
def test_beside_a_reference(fn: Any, failing: tuple[str, ...]) -> None:
    for name in (VALUES, GRADIENTS):
        verdicts = _verdicts(name, fn, POINT, reference=torch.square)
        assert ("FAIL" in verdicts.values()) is (name in failing), (name, verdicts)


def test_integers_and_updated_buffers_are_compared() -> None:
    def largest(input: Tensor) -> tuple[Tensor, Tensor]:
        return input * 1, input.argmax(1)

    def smallest(input: Tensor) -> tuple[Tensor, Tensor]:
        return input * 1, input.argmin(1)

    assert _verdicts(VALUES, largest, POINT, reference=largest) == {"": "pass"}
    row = _rows(VALUES, largest, POINT, reference=smallest)["float64"]
    assert row.where.startswith("output 1")

    module, other = nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4, momentum=0.2).double()
    assert _verdicts(VALUES, module, POINT, reference=nn.BatchNorm1d(4).double()) == {"": "pass"}
    row = _rows(VALUES, module, POINT, reference=other)["float64"]
    assert row.where.startswith("updated running_mean")
    assert _verdicts(GRADIENTS, module, POINT, reference=other) == {"": "pass"}


def test_dtypes_that_the_reference_refuses_are_not_the_ops_to_know() -> None:
    assert _verdicts(VALUES, _KnowsNoHalf, POINT, reference=_KnowsNoHalf) == {"": "pass"}
