"""Run two models on the same inputs and random numbers; find where they differ most."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Difference:
    """The largest difference among some tensors.

    Attributes:
        relative: To the largest element of the tensor, or to a thousandth of the largest of all
            tensors where that is more: what is zero but for rounding has no relative error.
        absolute: Of the same element.
        where: Which tensor.
    """

    relative: float
    absolute: float
    where: str

    def __str__(self) -> str:
        return f"{self.relative:.1e} relative, {self.absolute:.1e} absolute ({self.where})"


def largest_differences(ours: nn.Module, theirs: nn.Module, inputs: Any) -> dict[str, Difference]:
    """Return the largest difference of outputs, gradients and buffers.

    Gradients are those of one random projection of all outputs, with respect to every parameter
    and every floating-point input that the outputs depend on.

    Args:
        ours: A model; its buffers may change.
        theirs: The model to compare with.
        inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
    """
    results = run(ours, inputs), run(theirs, inputs)
    return {
        what: max(
            differences(results[0][what], results[1][what]).values(),
            key=lambda d: d.relative,
            default=Difference(0.0, 0.0, "none"),
        )
        for what in results[1]
    }


def run(
    model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Run a model forward and backward; return ``"outputs"``, ``"gradients"``, ``"buffers"``.

    Each is a dict of tensors by name. Gradients are with respect to every parameter and every
    floating-point input that the loss depends on.

    Args:
        model: Its buffers may change; its parameters' ``grad`` does not.
        inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
        loss: A scalar of the model's output; by default a random projection of all outputs.
    """
    leaves: dict[str, Tensor] = {k: p for k, p in model.named_parameters() if p.requires_grad}
    parameters = len(leaves)

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        value = value.detach().clone()
        if value.is_floating_point() or value.is_complex():
            leaves[f"input {len(leaves) - parameters}"] = value.requires_grad_()
        return value

    inputs = tree_map(fresh, inputs)
    devices = {leaf.device for leaf in leaves.values() if leaf.is_cuda}
    # Restores the random state afterwards, so that both models start from the same one.
    with torch.random.fork_rng(list(devices)), torch.enable_grad():
        output = call(model, inputs)
        outputs = [o for o in tree_leaves(output) if isinstance(o, Tensor)]
        smooth = [o for o in outputs if o.requires_grad]
        project = (o * _weights(o) for o in smooth)
        total = loss(output) if loss else sum(o.sum().real for o in project)
    gradients: tuple[Tensor | None, ...] = ()
    if isinstance(total, Tensor):
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        "outputs": {f"output {i}": o.detach() for i, o in enumerate(outputs)},
        "gradients": {k: g for k, g in zip(leaves, gradients, strict=False) if g is not None},
        "buffers": dict(model.named_buffers()),
    }


def call(model: nn.Module, inputs: Any) -> Any:
    """Call the model with one argument, a tuple of them, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _weights(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(output.numel())
    return torch.randn(output.shape, generator=generator).to(output)


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Difference]:
    """Return the difference of each tensor; one that only one side has differs infinitely."""
    floor = 1e-3 * max(map(_magnitude, theirs.values()), default=0.0)
    return {
        name: _difference(ours[name], theirs[name], floor, name)
        if name in ours and name in theirs
        else Difference(math.inf, math.inf, f"{name}: only one has it")
        for name in {**theirs, **ours}
    }


def _difference(ours: Tensor, theirs: Tensor, floor: float, name: str) -> Difference:
    ours, theirs = _dense(ours), _dense(theirs)
    if ours.shape != theirs.shape:
        return Difference(math.inf, math.inf, f"{name}: other shape")
    if torch.equal(ours, theirs):
        return Difference(0.0, 0.0, name)
    absolute = _magnitude(_wide(ours) - _wide(theirs))
    scale = max(_magnitude(theirs), floor)
    relative = absolute / scale if scale else math.inf
    # NaN against a number must not be lost in the maximum over tensors.
    return Difference(math.inf if math.isnan(relative) else relative, absolute, name)


def _magnitude(tensor: Tensor) -> float:
    return float(_wide(_dense(tensor)).abs().max()) if tensor.numel() else 0.0


def _dense(tensor: Tensor) -> Tensor:
    """Return a sparse gradient, as an embedding's may be, as a dense one."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float64))
