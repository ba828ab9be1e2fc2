"""A user's model on native autograd and on hand-written ops: how far the gradients differ."""

import html
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from manual_ops._compare import differences, run
from manual_ops.convert import Report, convert, override, revert


@dataclass(frozen=True)
class GradientDifference:
    """How the gradients of one parameter or input differ.

    Attributes:
        name: The parameter's name in the model, or ``input 0`` and so on.
        shape: Its shape.
        absolute: Largest difference of an element.
        relative: The same, relative to the largest element of the gradient, or to a thousandth of
            the largest of all gradients where that is more: what is zero but for rounding has no
            relative error. Infinite where only one side has a gradient.
    """

    name: str
    shape: tuple[int, ...]
    absolute: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """The gradients of a model by native autograd and by hand-written ops; prints as a table.

    Attributes:
        rows: One for each parameter and floating-point input, the largest relative difference
            first.
        loss: The loss by native autograd, and by hand-written ops.
        dtypes: Floating-point dtypes of the gradients.
        conversion: Which layers ran hand-written ops.
        native: ATen's own backward kernels that ran all the same, and how often.
    """

    rows: tuple[GradientDifference, ...]
    loss: tuple[float, float]
    dtypes: tuple[torch.dtype, ...]
    conversion: Report
    native: Counter[str]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield str(self.conversion)
        if self.native:
            calls = ", ".join(f"{name} ({count})" for name, count in self.native.most_common())
            yield f"still differentiated by PyTorch's own kernels: {calls}"
        yield f"loss: {self.loss[0]:.9g} by autograd, {self.loss[1]:.9g} by hand-written ops"
        for dtype in self.dtypes:
            yield f"rounding in {str(dtype).removeprefix('torch.')}: {torch.finfo(dtype).eps:.1e}"
        yield ""
        yield "absolute  relative  gradient of"
        for row in self.rows:
            yield f"{row.absolute:<8.1e}  {row.relative:<8.1e}  {row.name} {list(row.shape)}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def compare(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    *,
    dtype: torch.dtype | None = None,
) -> Comparison:
    """Differentiate a model by native autograd and by hand-written ops, and compare gradients.

    Two copies of the model run on the same inputs and random numbers: one on torch.nn's layers, one
    converted by ``convert`` and inside ``override()``. The model itself does not change.

    Args:
        model: Any module, on torch.nn or converted already.
        inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
        targets: Given to ``loss`` after the model's output.
        loss: Returns a scalar.
        dtype: What to compute in instead of the model's own: in float64, differences that are
            rounding vanish.

    Returns:
        The differences, largest first; ``print`` it.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``loss`` does not return a scalar.
        Exception: What the model or the loss raises.
    """
    native, _ = revert(model)
    if dtype is not None:

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        native.to(dtype)
        inputs, targets = tree_map_only(Tensor, cast, (inputs, targets))
    manual, conversion = convert(native)
    losses: list[float] = []

    def loss_of(output: Any) -> Tensor:
        value = loss(output, targets)
        if value.numel() != 1:
            raise ValueError(f"expected loss to return a scalar, got shape {list(value.shape)}")
        losses.append(float(value.detach()))
        return value

    theirs = run(native, inputs, loss_of)["gradients"]
    with override(), _BackwardKernels() as kernels:
        ours = run(manual, inputs, loss_of)["gradients"]
    rows = [
        GradientDifference(
            name, tuple((theirs | ours)[name].shape), difference.absolute, difference.relative
        )
        for name, difference in differences(ours, theirs).items()
    ]
    return Comparison(
        tuple(sorted(rows, key=lambda row: row.relative, reverse=True)),
        (losses[0], losses[1]),
        tuple(dict.fromkeys(gradient.dtype for gradient in theirs.values())),
        conversion,
        kernels.calls,
    )


class _BackwardKernels(TorchDispatchMode):
    """Counts the backward kernels of ATen that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "backward" in name:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
