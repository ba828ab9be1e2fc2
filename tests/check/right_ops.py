"""Ops without a mistake, in the styles in which people write them, and inputs for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for the same seed and shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


Formula = Callable[[Tensor, Tensor, Tensor], Tensor | None]


def linear_backward(
    x: Formula = lambda g, x, weight: g @ weight,
    weight: Formula = lambda g, x, weight: g.mT @ x,
    bias: Formula = lambda g, x, weight: g.sum(0),
    saved: Callable[[Any], Sequence[Tensor]] = lambda ctx: ctx.saved_tensors,
    needed: Callable[[Any], Sequence[bool]] = lambda ctx: ctx.needs_input_grad,
) -> Any:
    """Backward of ``Linear``.

    Args:
        x: Formula of ``(grad_output, x, weight)`` for the gradient of x.
        weight: The same for weight.
        bias: The same for bias.
        saved: x and weight, from ctx.
        needed: Which gradients are computed.
    """

    def backward(ctx, grad_output):
        operands = saved(ctx)
        dtype = operands[1].dtype
        operands = [operand.to(grad_output.dtype) for operand in operands]  # autocast's, say
        gradients = [
            formula(grad_output, *operands) if wanted else None
            for formula, wanted in zip((x, weight, bias), needed(ctx), strict=True)
        ]
        return tuple(None if g is None else g.to(dtype) for g in gradients)

    return staticmethod(backward)


class Linear(Function):
    """``x W^T + b`` of ``x`` (N, I), ``weight`` (O, I) and ``bias`` (O,)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return x @ weight.mT + bias

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    backward = linear_backward()


class LinearBothModes(Linear):
    """With forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, bias_tangent):
        x, weight = ctx.saved_tensors
        return x_tangent @ weight.mT + x @ weight_tangent.mT + bias_tangent


class Product(Function):
    """``a b``, in the style whose forward takes ctx."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        return (
            grad_output * b.conj() if ctx.needs_input_grad[0] else None,
            grad_output * a.conj() if ctx.needs_input_grad[1] else None,
        )


class Exp(Function):
    """``exp(x)``, from its output."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y


class ReLU(Function):
    """``max(x, 0)``, with the derivative 0 at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * (y > 0)


class Softmax(Function):
    """Softmax over the last dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.softmax(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (p,) = ctx.saved_tensors
        return p * (grad_output - (p * grad_output).sum(-1, keepdim=True))


class BatchNorm(Function):
    """``(x - mean) / std`` over the first dimension."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        centred = x - x.mean(0)
        return centred / (centred.square().mean(0) + 1e-5).sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(0)
        rstd = (centred.square().mean(0) + 1e-5).rsqrt()
        x_hat = centred * rstd
        along = (grad_output * x_hat).mean(0)
        return rstd * (grad_output - grad_output.mean(0) - x_hat * along)


class SinCos(Function):
    """``sin(x)`` and ``cos(x)``; backward is told of outputs that get no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        sin, cos = ctx.saved_tensors
        grad_x = None
        if grad_sin is not None:
            grad_x = grad_sin * cos
        if grad_cos is not None:
            grad_x = (0 if grad_x is None else grad_x) - grad_cos * sin
        return grad_x


class Scale(Function):
    """``x`` times a Python number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.factor, None

    @staticmethod
    def jvp(ctx, x_tangent, _):
        return x_tangent * ctx.factor


class Largest(Function):
    """The largest number in each row, and where it stands."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.max(-1)[0], x.max(-1)[1]

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, index = output
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index)
        ctx.width = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx, grad_output, _):
        (index,) = ctx.saved_tensors
        stands = torch.arange(ctx.width, device=index.device) == index.unsqueeze(-1)
        return stands * grad_output.unsqueeze(-1)


@dataclass(frozen=True)
class RightOp:
    """An op that is right, and inputs for it.

    Attributes:
        fn: The op.
        inputs: Positional.
        keywords: By name.
        cannot: Checks that it fails all the same, being what it is.
    """

    fn: Callable[..., Any] | type[Function] | nn.Module
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    cannot: tuple[str, ...] = ()


def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Functions inside a callable."""
    return Softmax.apply(ReLU.apply(Linear.apply(x, weight, bias)))


LINEAR = (normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2))
COMPLEX = tuple(normal(3, seed=seed, dtype=torch.complex128) for seed in (0, 1))
TIES = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 2.0]], dtype=torch.float64)
IMAGES = normal(2, 3, 4, 4, dtype=torch.float32)

# torch calls a Function's jvp with forward mode off, see manual_ops/_apply.py
NESTED_TANGENTS = ("jvp of jvp",)
# torch's own derivatives, wrong from the third order on
NATIVE_NORM = ("third order", "reverse over forward", "jvp of jvp", "third order, forward")
# vmap loses updates of buffers that are batched along any but the first dimension
NATIVE_BUFFERS = ("vmap", "hessian")

RIGHT_OPS = {
    "linear": RightOp(Linear, LINEAR),
    "linear in float32": RightOp(Linear, tuple(t.float() for t in LINEAR)),
    "linear, expanded input": RightOp(Linear, (normal(1, 4).expand(3, 4), *LINEAR[1:])),
    "linear, both modes": RightOp(LinearBothModes, LINEAR, cannot=NESTED_TANGENTS),
    "forward with ctx": RightOp(Product, (normal(3, 4), normal(3, 4, seed=1))),
    "complex": RightOp(Product, COMPLEX),
    "exp": RightOp(Exp, (normal(3, 4),)),
    "relu at 0": RightOp(ReLU, (torch.tensor([[-1.0, 0.0, 2.0]]),)),
    "softmax": RightOp(Softmax, (normal(3, 4),)),
    "batch norm": RightOp(BatchNorm, (normal(4, 3),)),
    "two outputs": RightOp(SinCos, (normal(3, 4),)),
    "number as argument": RightOp(Scale, (normal(3, 4), 2.5)),
    "integer output": RightOp(Largest, (normal(3, 4),)),
    "tied maximum": RightOp(Largest, (TIES,)),
    "Functions in a callable": RightOp(composed, LINEAR),
    "F.linear": RightOp(F.linear, LINEAR),
    "F.conv2d in float32": RightOp(F.conv2d, (IMAGES, normal(2, 3, 2, 2, dtype=torch.float32))),
    "F.max_pool2d, tied": RightOp(F.max_pool2d, (torch.ones(1, 1, 4, 4), 2)),
    "F.cross_entropy": RightOp(F.cross_entropy, (normal(3, 4), torch.tensor([0, 3, 1]))),
    "F.gelu in float32": RightOp(F.gelu, (normal(3, 4, dtype=torch.float32),)),
    "F.dropout": RightOp(F.dropout, (normal(3, 4),)),
    "F.layer_norm": RightOp(
        F.layer_norm, (normal(3, 4),), {"normalized_shape": (4,)}, cannot=NATIVE_NORM
    ),
    "Dropout": RightOp(nn.Dropout(0.3), (normal(3, 4),)),
    "BatchNorm2d": RightOp(nn.BatchNorm2d(3), (IMAGES,), cannot=NATIVE_NORM + NATIVE_BUFFERS),
    "Sequential": RightOp(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (normal(2, 4, dtype=torch.float32),)
    ),
}
