"""Ops as people write them: nothing is held against them that they do not claim; true reasons."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from manual_ops import check
from manual_ops.check import CHECKS, Report
from manual_ops.testing import assert_op_ok
from tests.check.right_ops import normal
from tests.check.wrong_ops import ForwardWithCtx

X = normal(3, 4)
SINGLE = X.float()
WITHOUT_COMPILING = [name for name in CHECKS if not name.startswith("compile")]


class Op(Function):
    """Sine, in the old style; others differ from it in one thing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.cos()


class OnceDifferentiable(Op):
    backward = staticmethod(once_differentiable(Op.backward))


class InNumpy(Op):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad_output.numpy() * np.cos(x.numpy()))


class ReadsData(Op):
    """Where gradients come in batches, torch ends the process for that."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output.data.cpu() * x.cos()


class InSingle(Op):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.float().sin().to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (grad_output.float() * x.float().cos()).to(x.dtype)


class RMSNorm(nn.Module):
    """Normalises in float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class NoDoubles(Op):
    @staticmethod
    def forward(ctx, x):
        if x.dtype is torch.float64:
            raise TypeError("no kernel for float64")
        return Op.forward(ctx, x)


class Dropout(Function):
    """Draws as many bits as the dtype has."""

    @staticmethod
    def forward(ctx, x):
        mask = (torch.rand_like(x) > 0.5).to(x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0]


class Overwrites(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.sigmoid_())
        return x

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y * (1 - y)


@torch.library.custom_op("manual_ops_tests::product", mutates_args=())
def product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@product.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


def product_backward(ctx, grad_output):
    x, y = ctx.saved_tensors
    return grad_output * y, grad_output * x


product.register_autograd(
    product_backward,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

RIGHT: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    # op, inputs, how it is checked, a reason for what does not apply
    "old style": (Op, (X,), {}, "forward of Op takes ctx, which torch.func refuses"),
    "once differentiable": (OnceDifferentiable, (X,), {}, "backward is marked once_differentiable"),
    "once differentiable, behind others": (
        lambda x: OnceDifferentiable.apply(2 * x).square(),
        (X,),
        {},
        "backward is marked once_differentiable",
    ),
    "an input that hardly counts": (
        lambda x, eps: x * torch.rsqrt(x.var(-1, keepdim=True) + eps),
        (X, torch.tensor(1e-8, dtype=torch.float64)),
        {},
        "no reference given",
    ),
    "in float32": (InSingle, (X,), {}, "has no setup_context"),
    "in float32, a module": (RMSNorm(), (SINGLE,), {}, "no reference given"),
    "no float64": (NoDoubles, (SINGLE,), {}, "takes no float64, to compare with"),
    "dropout": (Dropout, (SINGLE,), {}, "draws other random numbers in float64"),
    "in place": (Overwrites, (X,), {"mutates": ["x"]}, "forward mode: it has no formula (jvp)"),
    "in place, by both": (
        lambda x, y: x.mul_(y),
        (X.clone().requires_grad_(), normal(3, 4, seed=1).requires_grad_()),
        {"mutates": ["x"]},
        "no reference given",
    ),
    "library": (product, (X, normal(3, 4, seed=1)), {}, "torch.library takes no formula for it"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_ops_are_not_accused(name: str) -> None:
    op, inputs, how, reason = RIGHT[name]
    report = check(op, *inputs, only=WITHOUT_COMPILING, **how)
    assert report.ok, f"\n{report}"
    assert any(reason in row.detail for row in report.rows if row.verdict == "n/a"), f"\n{report}"


def test_what_is_required_fails_where_it_does_not_apply() -> None:
    with pytest.raises(AssertionError, match="required but not applicable: setup_context"):
        assert_op_ok(ForwardWithCtx, X, only=["setup_context"], require=["setup_context"])


def test_numpy_in_backward() -> None:
    report = check(InNumpy, X, only=["gradient", "batched gradient", "meta device"])
    verdicts = {row.check: row.verdict for row in report.rows}
    assert verdicts == {"gradient": "pass", "batched gradient": "FAIL", "meta device": "n/a"}


def test_data_of_a_batch_of_gradients() -> None:
    (row,) = check(ReadsData, X, only=["batched gradient"]).rows
    assert row.failed
    assert ".data and detach go behind autograd's back" in row.cause
    assert "data" not in vars(Tensor)
    tensor = torch.zeros(2)
    tensor.data = torch.ones(2)
    assert tensor.data.tolist() == [1, 1]


def test_running_statistics_are_no_inputs_to_differentiate_by() -> None:
    statistics = normal(4), normal(4).square()
    report = check(
        F.batch_norm,
        X,
        *statistics,
        keywords={"training": True},
        mutates=["running_mean", "running_var"],
        only=["gradient"],
    )
    assert [row.subject for row in report.rows] == ["input"]
    assert report.ok
    assert "not differentiated by running_mean, running_var, which the op updates" in str(report)


def test_names_of_checks_with_hyphens() -> None:
    assert [row.check for row in check(Op, X, only=["double-backward"]).rows] == ["double backward"]


class IgnoresGradOutput(Op):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return x.cos()


class DrawsItsOwnMask(Dropout):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (torch.rand_like(grad_output) > 0.5)


class TwoOutputs(Function):
    """None for one of them is taken for None of both."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        (x,) = ctx.saved_tensors
        if grad_sin is None or grad_cos is None:
            return None
        return grad_sin * x.cos() - grad_cos * x.sin()


class Counts(Op):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        Counts.calls += 1
        return Op.forward(ctx, x) * Counts.calls


class Infinite(Op):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.abs() / 0


class Rounds(Function):
    """Constant in x almost everywhere, and off by 0.02 % in y."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return (200 * x).round() * y

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return None, grad_output * (200 * x).round() * (1 + 2e-4)


class SavedVariables(Op):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_variables
        return grad_output * x.cos()


class RootOfZero(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.clamp(min=0) ** 2
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return 2 * grad_output * y.sqrt()


class Sparsemax(Op):
    @staticmethod
    def backward(ctx, grad_output):
        raise ValueError("Sparsemax: no dim")


class DetachesInBackward(Op):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.detach().cos()


class OnCPU(Op):
    @staticmethod
    def forward(ctx, x):
        return Op.forward(ctx, x) * torch.arange(4.0, dtype=x.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        return Op.backward(ctx, grad_output) * torch.arange(4.0, dtype=grad_output.dtype)


WRONG: dict[str, tuple[Callable[..., Any], str, str, str]] = {
    # op, check, what is found, the reason
    "grad_output": (IgnoresGradOutput.apply, "gradient", "", "does not depend on grad_output"),
    "mask": (DrawsItsOwnMask.apply, "determinism", "", "draw in forward and save what was drawn"),
    "None": (TwoOutputs.apply, "undefined gradients", "", "A gradient that is due is left out"),
    "state": (Counts.apply, "gradient", "other numbers the second time", "it keeps state"),
    "state, told twice": (Counts.apply, "determinism", "", "it keeps state"),
    "infinite": (Infinite.apply, "gradient", "is inf", "12 elements are nan or infinite"),
    "rounds": (lambda x: Rounds.apply(x, x.cos()), "gradient", "is ", "a factor is missing"),
    "old name": (SavedVariables.apply, "compile", "", "read ctx.saved_tensors"),
    "root": (RootOfZero.apply, "double backward", "is nan", "a root of 0"),
    "name": (Sparsemax.apply, "gradient", "Sparsemax: no dim", "do the same by hand"),
    "detach": (DetachesInBackward.apply, "double backward", "is 0", "mark backward once_diff"),
    "undefined": (torch.log, "gradient", "forward is nan at", "--range 0.1 2"),
    "device": (OnCPU.apply, "meta device", "device", "device=x.device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_reasons(name: str) -> None:
    op, which, found, reason = WRONG[name]
    report: Report = check(op, X, only=[which])
    (row,) = report.failures
    assert found in row.detail
    assert reason in row.cause


def test_one_cause_is_told_once() -> None:
    report = check(Sparsemax, X, only=["gradient", "checkpoint", "backward twice"])
    assert len(report.failures) == 3
    assert str(report).count("do the same by hand") == 1
    assert "As in" not in str(report)
