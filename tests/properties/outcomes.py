"""What comes of a call, and whether two outcomes are the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.properties.tensors import Made

Arguments = Mapping[str, Any]
Builder = Callable[[Made], Tensor]

SHAKES = 4


@dataclass(frozen=True)
class Outcome:
    """One call, forward and backward.

    Attributes:
        stage: Where it ended: ``forward`` or ``backward`` if it raised there, else ``done``.
        error: What it raised.
        tensors: Outputs, gradients, and the arguments as they are afterwards, by name.
        structure: Of the output, and which outputs require grad.
    """

    stage: str
    error: Exception | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    structure: tuple[Any, ...] = ()


def outcome_of(
    op: Callable[..., Any], arguments: Arguments, cotangent: Made, build: Builder = Made.build
) -> Outcome:
    """Call ``op``, and pull ``cotangent`` of the shape of the output back to all leaves."""
    built = {
        name: build(value) if isinstance(value, Made) else value
        for name, value in arguments.items()
    }
    leaves = {k: v for k, v in built.items() if isinstance(v, Tensor) and v.requires_grad}
    if built.get("inplace") and cotangent.seed % 4 and "input" in leaves:
        built["input"] = built["input"].clone()  # in place of a leaf nothing is allowed
    torch.default_generator.manual_seed(0)  # of the CPU alone: 4 ms less than torch.manual_seed
    try:
        output = op(**built)
    except Exception as error:
        return Outcome("forward", error)
    outputs = output if isinstance(output, tuple) else (output,)
    tensors = {f"argument {k}": v.detach() for k, v in built.items() if isinstance(v, Tensor)}
    tensors |= {f"output {i}": o.detach() for i, o in enumerate(outputs) if o is not None}
    smooth = [o for o in outputs if o is not None and o.requires_grad]
    if smooth:
        above = [build(_like(o, cotangent)) for o in smooth]
        try:
            found = torch.autograd.grad(smooth, [*leaves.values()], above, allow_unused=True)
        except Exception as error:
            return Outcome("backward", error)
        gradients = zip(leaves, found, strict=True)
        tensors |= {f"gradient of {k}": g for k, g in gradients if g is not None}
    structure = tuple(None if o is None else o.requires_grad for o in outputs)
    return Outcome("done", None, tensors, structure)


def _like(output: Tensor, made: Made) -> Made:
    dtype = made.dtype if made.rounded else output.dtype
    return replace(made, shape=tuple(output.shape), dtype=dtype, device=output.device.type)


@dataclass(frozen=True)
class Exact:
    """The same call in float64: what both would give without rounding.

    Attributes:
        op: The function, by torch's operations.
        arguments: Its arguments, rounded to their dtypes before they are widened.
        cotangent: Likewise.
    """

    op: Callable[..., Any]
    arguments: Arguments
    cotangent: Made

    def outcome(self, dtype: torch.dtype, shake: int = 0) -> Outcome:
        """Run it.

        Args:
            dtype: Of the output, otherwise.
            shake: Move every number by about its last digit, for each number above 0 in another
                way: what that does to the result is what rounding anywhere may do.
        """
        arguments = {
            name: torch.float64 if isinstance(value, torch.dtype) else value
            for name, value in self.arguments.items()
            if name != "inplace"
        }

        def build(made: Made) -> Tensor:
            tensor = made.build()
            if not tensor.is_floating_point():
                return tensor
            exact = tensor.detach().double()
            if shake:
                g = torch.Generator().manual_seed(made.seed + shake)
                noise = torch.randn(exact.shape, generator=g, dtype=exact.dtype)
                exact = exact * (1 + 4 * torch.finfo(made.dtype).eps * noise)
            return exact.requires_grad_(tensor.requires_grad)

        cotangent = replace(self.cotangent, dtype=dtype, rounded=True)
        return outcome_of(self.op, arguments, cotangent, build)

    def rounded(self) -> Outcome:
        """Run it in the arguments' own dtypes: what rounding on the way may do."""
        return outcome_of(self.op, self.arguments, self.cotangent)


def difference(ours: Outcome, theirs: Outcome, exact: Exact) -> tuple[str, str]:
    """Say where two outcomes differ and how; two empty strings where they do not.

    Args:
        ours: Of the op under test.
        theirs: Of torch.nn's.
        exact: Asked where numbers are not close at once.
    """
    if ours.error or theirs.error:
        same = (ours.stage, type(ours.error)) == (theirs.stage, type(theirs.error))
        how = f"{ours.stage} {ours.error!r}, torch.nn {theirs.stage} {theirs.error!r}"
        return ("", "") if same else ("error", how)
    if ours.structure != theirs.structure:
        return "outputs", f"require grad: {ours.structure}, torch.nn {theirs.structure}"
    if ours.tensors.keys() != theirs.tensors.keys():
        return "results", f"{[*ours.tensors]}, torch.nn {[*theirs.tensors]}"
    devices = {v.device for v in exact.arguments.values() if isinstance(v, Made)}
    for name, tensor in ours.tensors.items():
        expected = theirs.tensors[name]
        for attribute in ("dtype", "device", "shape", "layout"):
            here, there = getattr(tensor, attribute), getattr(expected, attribute)
            if here != there:
                return name, f"{attribute} {here}, torch.nn {there}"
        if tensor.layout is torch.sparse_coo:
            tensor, expected = tensor.to_dense(), expected.to_dense()
        # What torch.nn makes of meta tensors among others is not initialised.
        if devices == {"cpu"} and not close(tensor, expected):
            how = _unlike(name, tensor, expected, exact, theirs.tensors["output 0"].dtype)
            if how:
                return name, how
    return "", ""


def _unlike(
    name: str, ours: Tensor, theirs: Tensor, exact: Exact, dtype: torch.dtype
) -> str | None:
    truth = exact.outcome(dtype).tensors.get(name)
    if truth is None or truth.shape != ours.shape:
        return f"no exact value: {_described(ours, theirs, ours)}"
    truth = truth.to_dense()
    shaken = (exact.outcome(dtype, shake).tensors.get(name) for shake in range(1, 1 + SHAKES))
    rounded = (theirs, exact.rounded().tensors.get(name))
    # Those moved out of bounds are missing.
    others, moved = ([x.to_dense() for x in xs if x is not None] for xs in (rounded, shaken))
    if as_accurate(ours, others, truth, moved):
        return None
    return _described(ours, theirs, truth)


def _described(ours: Tensor, theirs: Tensor, exact: Tensor) -> str:
    """Where they differ most."""
    apart = torch.atleast_1d(
        (ours.double() - theirs.double()).abs().nan_to_num(0, posinf=torch.inf)
    )
    apart[torch.atleast_1d(ours.isfinite() != theirs.isfinite())] = torch.inf
    at = int(apart.argmax())
    values = [x.flatten()[at].item() for x in (ours, theirs, exact)]
    return "{}, torch.nn {}, in float64 {}".format(*values)


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether all numbers are equal but for rounding, and the others, NaN or infinite, the same."""
    if torch.equal(ours, theirs):
        return True
    if not ours.is_floating_point():
        return False
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite].nan_to_num(7), theirs[~finite].nan_to_num(7)):
        return False
    return _error(ours, theirs, finite) <= _floor(theirs, finite)


def as_accurate(ours: Tensor, others: list[Tensor], truth: Tensor, moved: list[Tensor]) -> bool:
    """Whether our largest error is about that of others; finite where those overflow is as good.

    Args:
        ours: Under test.
        others: Torch.nn's, and what its plain operations come to in the same dtype.
        truth: In float64.
        moved: In float64, of arguments moved by about their last digit.
    """
    theirs = others[0]
    known = truth.isfinite() & ours.isfinite()
    if not close(ours[~known], theirs[~known]):
        return False
    error = max(_error(other, truth, known & other.isfinite()) for other in others)
    rounding = max((_error(shaken, truth, known) for shaken in moved), default=0.0)
    floor = _floor(truth.to(ours.dtype), known) + 8 * rounding
    return _error(ours, truth, known) <= 4 * error + floor


def _error(tensor: Tensor, expected: Tensor, where: Tensor) -> float:
    errors = (tensor.double() - expected.double())[where].abs()
    return float(errors.max()) if errors.numel() else 0.0


def _floor(tensor: Tensor, where: Tensor) -> float:
    """Sixteen roundings of the largest number, or of 1."""
    largest = _error(tensor, torch.zeros_like(tensor), where)
    return 16 * torch.finfo(tensor.dtype).eps * max(largest, 1.0)
