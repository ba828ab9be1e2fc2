"""What the contract tests share: running a case, and comparing the result with torch.nn's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from manual_ops import functional
from manual_ops.testing.cases import CASES, OpCase

Op = Callable[..., Any]


def cases_for(table: Sequence[OpCase] = CASES) -> pytest.MarkDecorator:
    """Parametrise a test over every case of a table."""
    return pytest.mark.parametrize("case", table, ids=lambda case: case.id)


def subject(case: OpCase) -> Op:
    """The op under test."""
    return getattr(functional, case.op)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The differentiable output; the other one of max pooling holds indices."""
    return output[0] if isinstance(output, tuple) else output


def on_differentiable(
    case: OpCase, op: Op, arguments: dict[str, Any], *, seed: bool = True
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Close over everything but the differentiable arguments.

    Returns:
        A function of the differentiable tensors that returns the op's first output, and these
        tensors, requiring grad. It is pure: each call clones the buffers and seeds the generator.
    """

    def function(*tensors: Tensor) -> Tensor:
        if case.random and seed:
            torch.manual_seed(0)
        buffers = {name: arguments[name].clone() for name in case.buffers}
        given = dict(zip(case.differentiable, tensors, strict=True))
        return first(op(**(arguments | buffers | given)))

    tensors = tuple(arguments[name].detach().requires_grad_() for name in case.differentiable)
    return function, tensors


def scalar(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], seed: int = 1
) -> Callable[..., Tensor]:
    """``<function(...), w>`` for a fixed random ``w``: one number that depends on every output."""
    weight = random_like(function(*tensors), seed)
    return lambda *args: (function(*args) * weight).sum()


def random_like(tensor: Tensor, seed: int, dtype: torch.dtype | None = None) -> Tensor:
    """Normal numbers of the shape, dtype and device of ``tensor``, rounded to ``dtype`` first."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return drawn.to(dtype or tensor.dtype).to(tensor.device, tensor.dtype)


@dataclass(frozen=True)
class Run:
    """One forward and backward: outputs, gradients and buffers by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def run(
    case: OpCase,
    op: Op,
    arguments: dict[str, Any],
    cotangent: Callable[[Tensor], Tensor],
) -> Run:
    """Call ``op``, then pull ``cotangent(output)`` back to every differentiable argument."""
    if case.random:
        torch.manual_seed(0)
    leaves = {name: arguments[name].detach().requires_grad_() for name in case.differentiable}
    buffers = {name: arguments[name].clone() for name in case.buffers}
    output = op(**(arguments | buffers | leaves))
    outputs = [o for o in (output if isinstance(output, tuple) else (output,)) if o is not None]
    gradients = torch.autograd.grad(outputs[0], list(leaves.values()), cotangent(outputs[0]))
    return Run(
        {f"output {i}": tensor.detach() for i, tensor in enumerate(outputs)},
        {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)},
        {f"buffer {name}": tensor for name, tensor in buffers.items()},
    )


def cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Cast the floating-point tensors among ``arguments``."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def assert_matches(ours: Run, theirs: Run, truth: Run) -> None:
    """Same dtypes, shapes and strides as torch.nn, and an error about as small as its own."""
    for part in ("outputs", "gradients", "buffers"):
        expected = getattr(theirs, part)
        assert getattr(ours, part).keys() == expected.keys()
        for name, tensor in getattr(ours, part).items():
            assert_like(tensor, expected[name], name)
            assert_as_accurate(tensor, expected[name], getattr(truth, part)[name], name)


def assert_like(ours: Tensor, theirs: Tensor, name: str) -> None:
    """Same dtype, device, shape and strides."""
    for attribute in ("dtype", "device", "shape"):
        expected, found = getattr(theirs, attribute), getattr(ours, attribute)
        assert found == expected, f"{name}: {attribute} {found}, torch.nn {expected}"
    assert _layout(ours) == _layout(theirs), (
        f"{name}: strides {ours.stride()}, torch.nn {theirs.stride()}"
    )


def _layout(tensor: Tensor) -> list[int]:
    """The strides that matter: none of a dimension of size 1, nor any of an empty tensor."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in pairs if size > 1 and tensor.numel()]


def assert_as_accurate(ours: Tensor, theirs: Tensor, truth: Tensor, name: str) -> None:
    """Our largest error is at most twice torch.nn's own, plus a few units in the last place.

    Non-finite values must be the same ones; integer tensors must be equal.
    """
    if not ours.is_floating_point():
        assert torch.equal(ours, theirs), f"{name}: {ours} is not {theirs}"
        return
    finite = theirs.isfinite()
    torch.testing.assert_close(
        ours[~finite], theirs[~finite], equal_nan=True, msg=lambda m: f"{name}: {m}"
    )
    if not finite.any():
        return
    truth = truth[finite].double()
    error = (ours[finite].double() - truth).abs().max()
    allowance = 2 * (theirs[finite].double() - truth).abs().max()
    # All drawn numbers are of order one: where terms cancel, a trace of their rounding remains.
    floor = torch.finfo(ours.dtype).eps * (8 * truth.abs().max() + 2)
    assert error <= allowance + floor, (
        f"{name}: error {error:.3g}, the reference's {allowance / 2:.3g}, floor {floor:.3g}"
    )


def requiring(arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A copy of ``arguments`` in which just ``names`` require grad."""
    return {
        name: value.detach().clone().requires_grad_(name in names)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


def saved_bytes(output_of: Callable[[], Any]) -> tuple[int, set[int]]:
    """Bytes of the distinct storages saved for backward, and their addresses."""
    saved: dict[int, int] = {}
    alive = []  # an address identifies a storage only while it lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(output_of())
    return sum(saved.values()), set(saved)


class CountOps(TorchDispatchMode):
    """Count the ATen calls made while active, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
