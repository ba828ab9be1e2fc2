"""Ops that are wrong on purpose, each in one way, and the check that has to notice."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from tests.check.right_ops import (
    COMPLEX,
    LINEAR,
    NESTED_TANGENTS,
    BatchNorm,
    Exp,
    Linear,
    Product,
    ReLU,
    Scale,
    SinCos,
    Softmax,
    linear_backward,
    normal,
)

# The formulas


class DroppedBiasGradient(Linear):
    backward = linear_backward(bias=lambda g, x, weight: None)


class TransposedWeightGradient(Linear):
    """Of a square weight, so that the shape gives nothing away."""

    backward = linear_backward(weight=lambda g, x, weight: x.mT @ g)


class FirstOfTheBatch(Linear):
    """The bias gets the gradient of one sample instead of their sum."""

    backward = linear_backward(bias=lambda g, x, weight: g[:1].sum(0))


class MeanInsteadOfSum(Linear):
    backward = linear_backward(bias=lambda g, x, weight: g.mean(0))


class SoftmaxDiagonalAlone(Softmax):
    """Without the off-diagonal of the Jacobian."""

    @staticmethod
    def backward(ctx, grad_output):
        (p,) = ctx.saved_tensors
        return grad_output * p * (1 - p)


class BatchNormWithoutMeanTerm(BatchNorm):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(0)
        rstd = (centred.square().mean(0) + 1e-5).rsqrt()
        x_hat = centred * rstd
        return rstd * (grad_output - x_hat * (grad_output * x_hat).mean(0))


class BatchNormUnbiased(BatchNorm):
    """The variance in backward is not the one in forward."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(0)
        rstd = (centred.square().sum(0) / (len(x) - 1) + 1e-5).rsqrt()
        x_hat = centred * rstd
        along = (grad_output * x_hat).mean(0)
        return rstd * (grad_output - grad_output.mean(0) - x_hat * along)


class OneElementOffByOnePercent(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        factor = torch.ones_like(y)
        factor[-1:, -1:] = 1.01
        return grad_output * y * factor


class WithoutConjugate(Product):
    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        return (
            grad_output * b if ctx.needs_input_grad[0] else None,
            grad_output * a.conj() if ctx.needs_input_grad[1] else None,
        )


class WrongTangent(Scale):
    @staticmethod
    def jvp(ctx, x_tangent, _):
        return x_tangent


class TangentOfBothAlone(Function):
    """A product. Without a tangent an input has None for one here, which is 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b):
        return a * b

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return None, None
        a, b = ctx.saved_tensors
        return (
            grad_output * b if ctx.needs_input_grad[0] else None,
            grad_output * a if ctx.needs_input_grad[1] else None,
        )

    @staticmethod
    def jvp(ctx, a_tangent, b_tangent):
        a, b = ctx.saved_tensors
        if a_tangent is None or b_tangent is None:
            return torch.zeros_like(a)
        return a_tangent * b + a * b_tangent


class SavedIntermediate(Function):
    """``sin(exp(x))``; exp(x) is a constant to whoever differentiates backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        inner = x.exp()
        return inner.sin(), inner

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_output, _):
        (inner,) = ctx.saved_tensors
        return grad_output * inner.cos() * inner


class DetachedBackward(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output).detach()


class SecondDerivativeForgotten(Function):
    """A backward that is an op by itself, whose own backward lacks a term."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output, y):
        return grad_output * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y, torch.zeros_like(y)


class ExpOfTwoOps(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return SecondDerivativeForgotten.apply(grad_output, *ctx.saved_tensors)


# What backward returns


class UnsummedBiasGradient(Linear):
    """Autograd sums what is too large, so that the gradient is right."""

    backward = linear_backward(bias=lambda g, x, weight: g * 1)


class PromotedGradient(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y.double()


class SparseGradient(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output).to_sparse()


class NoneIsTakenForATensor(SinCos):
    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        sin, cos = ctx.saved_tensors
        return grad_sin * cos - grad_cos * sin


class AllGradients(Linear):
    """Whoever asked for what."""

    backward = linear_backward(needed=lambda ctx: (True, True, True))


class WrongIndexOfNeeds(Linear):
    """The gradient of weight is there only if that of x is asked for as well."""

    backward = linear_backward(needed=lambda ctx: [ctx.needs_input_grad[i] for i in (0, 0, 2)])


def detached(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.detach()


class TellsTensorsByAddress(Product):
    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        return (
            grad_output * b if ctx.needs_input_grad[0] else None,
            grad_output * a if ctx.needs_input_grad[1] and a.data_ptr() != b.data_ptr() else None,
        )


# What an op writes to


class OverwritesItsInput(ReLU):
    @staticmethod
    def forward(x):
        return x.data.clamp_(min=0) + 0


class OverwritesGradOutput(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output.mul_(y)


class OverwritesItsOutput(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return y.data.mul_(grad_output)


# What it takes for granted


class IgnoresStrides(Exp):
    """Takes its input for contiguous."""

    @staticmethod
    def forward(x):
        return x.as_strided(x.shape, torch.empty(x.shape).stride()).exp()


class IgnoresStridesOfGradOutput(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output.as_strided(y.shape, torch.empty(y.shape).stride()) * y


class LosesMemoryFormat(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output).contiguous()


class KnowsNoAutocast(Linear):
    """Saves float32, and is given the gradient of a bfloat16 output."""

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        return (
            grad_output @ weight if ctx.needs_input_grad[0] else None,
            grad_output.mT @ x if ctx.needs_input_grad[1] else None,
            grad_output.sum(0) if ctx.needs_input_grad[2] else None,
        )


class PromotedOutput(Exp):
    @staticmethod
    def forward(x):
        return x.double().exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dtype = inputs[0].dtype
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output).to(ctx.dtype)


class CancelsDigits(Function):
    """The variance as the difference of two large numbers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square().mean(0) - x.mean(0).square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 / len(x) * grad_output * (x - x.mean(0)) if len(x) else x * 0


def variance(x: Tensor) -> Tensor:
    return (x - x.mean(0)).square().mean(0)


# What it remembers


class NeverTheSameGradient(Exp):
    """Off by some units in the last place more each time, which no tolerance forbids."""

    calls = itertools.count()

    @staticmethod
    def backward(ctx, grad_output):
        return Exp.backward(ctx, grad_output) * (1 + 1e-15 * next(NeverTheSameGradient.calls))


class StateOnTheClass(Exp):
    y: ClassVar[Tensor]

    @staticmethod
    def setup_context(ctx, inputs, output):
        StateOnTheClass.y = output

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * StateOnTheClass.y


class OutputOnCtx(Exp):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.y = output

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.y


class DetachedOutputOnCtx(Exp):
    """Not freed with the graph alone, and not watched: a change of the output goes unnoticed."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.y = output.detach()

    backward = OutputOnCtx.backward


class InputOnCtx(Exp):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.parts = {"x": inputs[0]}

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.parts["x"].exp()


class SavedReadTwice(Linear):
    backward = linear_backward(saved=lambda ctx: (ctx.saved_tensors[0], ctx.saved_tensors[1]))


class SpendsWhatItSaved(ReLU):
    """The mask is scaled in place: the second backward finds the first one's result."""

    @staticmethod
    def forward(x):
        return x.clamp(min=0), (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_output, _):
        (mask,) = ctx.saved_tensors
        return mask.data.mul_(grad_output)


class SavesMaskAsNumbers(ReLU):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], (inputs[0] > 0).to(output.dtype))

    @staticmethod
    def backward(ctx, grad_output):
        _, mask = ctx.saved_tensors
        return grad_output * mask


class SavesMoreWhenFrozen(Linear):
    """The condition is the wrong way round."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight, None if ctx.needs_input_grad[1] else output.clone())

    backward = linear_backward(saved=lambda ctx: ctx.saved_tensors[:2])


# Where it works, and where it does not


class ForwardWithCtx(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y


def halved_in_training(x: Tensor) -> Tensor:
    """Takes grad mode for training mode."""
    return Exp.apply(x) / 2 if torch.is_grad_enabled() else Exp.apply(x)


class ForwardChoosesByValue(Exp):
    """Python looks at a number, which vmap does not have."""

    @staticmethod
    def forward(x):
        return x.exp() if x.sum() > -1e9 else x * 0


class BackwardChoosesByValue(Exp):
    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y if grad_output.sum() > -1e9 else y * 0


class BreaksTheGraph(Exp):
    """Dynamo does not compile clocks."""

    @staticmethod
    def forward(x):
        time.perf_counter()
        return x.exp()


class VmapForgetsTheDimension(Exp):
    """A vmap staticmethod that takes the first dimension for the batch."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x):
        return VmapForgetsTheDimension.apply(x), 0


@dataclass(frozen=True)
class WrongOp:
    """A wrong op.

    Attributes:
        fn: The op.
        inputs: For it.
        caught_by: The check that has to fail.
        also: Checks that fail as a consequence.
        reference: To compare with, where only that tells right from wrong.
    """

    fn: Callable[..., Any] | type[Function]
    inputs: tuple[Any, ...]
    caught_by: str
    also: tuple[str, ...] = ()
    reference: Callable[..., Any] | None = None


X = (normal(3, 4),)
SINGLE = (normal(3, 4, dtype=torch.float32),)
TWO = (normal(3, 4), normal(3, 4, seed=1))
SQUARE = (normal(3, 4), normal(4, 4, seed=1), normal(4, seed=2))

SECOND = ("double backward", "third order")
BATCHED = ("batched gradient", "per-sample gradients", "backward through vmap", "jacobian")

WRONG_OPS = (
    WrongOp(DroppedBiasGradient, LINEAR, "gradient", ("gradients returned",)),
    WrongOp(TransposedWeightGradient, SQUARE, "gradient"),
    WrongOp(FirstOfTheBatch, LINEAR, "gradient"),
    WrongOp(MeanInsteadOfSum, LINEAR, "gradient", ("empty batch",)),
    WrongOp(SoftmaxDiagonalAlone, X, "gradient", SECOND),
    WrongOp(BatchNormWithoutMeanTerm, X, "gradient"),
    WrongOp(BatchNormUnbiased, X, "gradient"),
    WrongOp(OneElementOffByOnePercent, X, "gradient", SECOND),
    WrongOp(WithoutConjugate, COMPLEX, "gradient"),
    WrongOp(WrongTangent, (*X, 2.5), "forward mode", ("jacobian",)),
    WrongOp(TangentOfBothAlone, TWO, "forward mode", NESTED_TANGENTS),
    WrongOp(SavedIntermediate, X, "double backward", ("third order",)),
    WrongOp(DetachedBackward, X, "double backward", ("batched gradient",)),
    WrongOp(ExpOfTwoOps, X, "double backward"),
    WrongOp(UnsummedBiasGradient, LINEAR, "gradients returned"),
    WrongOp(PromotedGradient, SINGLE, "gradients returned"),
    WrongOp(SparseGradient, X, "gradients returned", (*SECOND, *BATCHED)),
    WrongOp(
        detached,
        TWO,
        "gradient",
        (*SECOND, "forward mode", "forward over reverse", "reverse over forward", "jvp of jvp"),
    ),
    WrongOp(NoneIsTakenForATensor, X, "undefined gradients"),
    WrongOp(AllGradients, LINEAR, "needs_input_grad"),
    WrongOp(WrongIndexOfNeeds, LINEAR, "needs_input_grad"),
    WrongOp(TellsTensorsByAddress, TWO, "same tensor twice"),
    WrongOp(
        OverwritesItsInput,
        X,
        "inputs unchanged",
        ("vmap", "per-sample gradients", "backward through vmap", "layouts"),
    ),
    WrongOp(
        OverwritesGradOutput,
        X,
        "inputs unchanged",
        ("gradient", "batched gradient", *SECOND, "grad_output layouts"),
    ),
    WrongOp(
        OverwritesItsOutput,
        X,
        "inputs unchanged",
        (*SECOND, "batched gradient", "backward through vmap", "jacobian", "backward twice"),
    ),
    WrongOp(
        NeverTheSameGradient,
        X,
        "determinism",
        ("saved tensors", "checkpoint", "backward twice"),
    ),
    WrongOp(
        StateOnTheClass,
        X,
        "determinism",
        ("in-place change of output", "freed without garbage collection"),
    ),
    WrongOp(IgnoresStrides, X, "layouts", ("vmap", "backward through vmap")),
    WrongOp(IgnoresStridesOfGradOutput, X, "grad_output layouts", ("layouts",)),
    WrongOp(LosesMemoryFormat, (normal(2, 3, 4, 4),), "channels_last", reference=torch.exp),
    WrongOp(KnowsNoAutocast, LINEAR, "autocast"),
    WrongOp(PromotedOutput, SINGLE, "precision"),
    WrongOp(CancelsDigits, (normal(8, 4) + 50,), "precision", ("autocast",)),
    WrongOp(
        CancelsDigits,
        (normal(8, 4) + 50,),
        "values against reference",
        ("autocast", "precision"),
        reference=variance,
    ),
    WrongOp(InputOnCtx, X, "saved tensors"),
    WrongOp(
        OutputOnCtx,
        X,
        "freed without garbage collection",
        ("saved tensors", "in-place change of output"),
    ),
    WrongOp(
        DetachedOutputOnCtx,
        X,
        "in-place change of output",
        ("saved tensors", *SECOND),
    ),
    WrongOp(SavedReadTwice, LINEAR, "saved tensors", ("checkpoint",)),
    WrongOp(
        SpendsWhatItSaved,
        X,
        "backward twice",
        ("batched gradient", "backward through vmap", "jacobian"),
    ),
    WrongOp(SavesMaskAsNumbers, X, "saved bytes", reference=F.relu),
    WrongOp(SavesMoreWhenFrozen, LINEAR, "saved bytes"),
    WrongOp(halved_in_training, X, "no grad mode", ("gradient",)),
    WrongOp(ForwardChoosesByValue, X, "vmap", ("per-sample gradients", "backward through vmap")),
    WrongOp(BackwardChoosesByValue, X, "batched gradient", BATCHED[1:]),
    WrongOp(BreaksTheGraph, X, "compile"),
    WrongOp(VmapForgetsTheDimension, X, "vmap", ("backward through vmap",)),
)
