"""One forward and backward of an op, by the names of what comes out, and how two are compared."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from manual_ops.check.differences import machine_epsilon
from manual_ops.check.exam import Check, random_like
from manual_ops.check.report import Row
from manual_ops.check.subject import Subject

Named = Mapping[str, Tensor]
Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """What one forward and backward gave.

    Attributes:
        values: Outputs, and what was updated in place.
        gradients: Of the differentiable inputs.
    """

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]

    @property
    def every(self) -> dict[str, Tensor]:
        """Values and gradients."""
        return self.values | self.gradients


def run(
    op: Subject,
    *,
    call: Callable[..., Any] | None = None,
    layout: Layout = lambda tensor: tensor,
    grad_layout: Layout = lambda tensor: tensor,
    rounded: torch.dtype | None = None,
) -> Run:
    """Call an op, and pull random cotangents back to its differentiable inputs.

    Args:
        op: The op.
        call: Runs it another way, compiled for example.
        layout: Lays its floating-point and complex inputs out in memory.
        grad_layout: The same for the cotangents.
        rounded: Dtype that the cotangents are rounded to first, so that runs in several dtypes are
            given the same numbers.
    """
    leaves = op.with_tensors(tuple(tensor.clone() for tensor in op.tensors))
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            laid_out = (leaf if i in op.mutable else layout(leaf)).detach()
            leaves[i] = laid_out.requires_grad_() if i in op.differentiable else laid_out
    inputs = [leaves[i] for i in op.differentiable]
    leaves = op.spared(leaves)
    if op.random:
        torch.manual_seed(op.seed)
    with torch.enable_grad():
        output = (call or op.call)(*leaves)
    outputs = [o for o in tree_leaves(output) if isinstance(o, Tensor)]
    flowing = [o for o in op.differentiable_of(output) if o.requires_grad]
    cotangents = []
    for k, o in enumerate(flowing):
        drawn = random_like(o, 1 + k)
        if rounded is not None and not o.is_complex():
            drawn = drawn.to(rounded).to(o.dtype)
        cotangents.append(grad_layout(drawn))
    found = torch.autograd.grad(
        flowing, inputs, cotangents, allow_unused=True, materialize_grads=True
    )
    names = ["output"] if len(outputs) == 1 else [f"output {k}" for k in range(len(outputs))]
    values = dict(zip(names, (o.detach() for o in outputs), strict=True))
    values |= {f"updated {op.names[i]}": leaves[i].detach() for i in op.mutable}
    gradients = zip(op.tensor_names, found, strict=True)
    dense = {n: g.to_dense() if g.is_sparse else g for n, g in gradients}
    return Run(values, {f"gradient of {name}": g.detach() for name, g in dense.items()})


def close(
    check: Check, found: Named, expected: Named, subject: str = "", *, cause: str = ""
) -> Row:
    """One row on tensors that must equal others up to the rounding of a different order of sums.

    The error allowed is three quarters of the digits of the largest element, and some rounding of
    the largest of all tensors together, for those that are zero but for rounding.
    """
    sizes = [largest(tensor) for tensor in expected.values()]
    rows = []
    for name, tensor in found.items():
        eps = machine_epsilon([tensor])
        rows.append(
            check.equal(
                name,
                tensor,
                expected[name],
                ulps=eps**-0.25 if eps else 0.0,
                least=64 * eps * max(sizes, default=0.0),
                cause=cause,
            )
        )
    return _of_tensors(check, rows, subject)


def over(check: Check, rows: Iterable[Row]) -> Row:
    """One row over several settings: the first that does not pass, or the largest error."""
    row = _worst(check, rows)
    where = f"{row.subject} {row.where}".strip() if row.failed else row.where
    return replace(row, subject="", where=where)


def _worst(check: Check, rows: Iterable[Row]) -> Row:
    """The first row that does not pass, or the one of the largest error."""
    worst = check.passed()
    for row in rows:
        if row.verdict != "pass":
            return row
        if (row.absolute or 0.0) >= (worst.absolute or 0.0):
            worst = row
    return worst


def _of_tensors(check: Check, rows: Iterable[Row], subject: str) -> Row:
    """One row on ``subject`` from one on each of its tensors."""
    row = _worst(check, rows)
    return replace(row, subject=subject, where=f"{row.subject} {row.where}".strip())


def within(
    check: Check, found: Named, truth: Named, allowed: Mapping[str, float], subject: str = ""
) -> Row:
    """One row on tensors that may be off from the truth by so much; where that overflows, by more.

    Args:
        check: The check.
        found: Tensors under check.
        truth: The same in float64.
        allowed: Largest error of each.
        subject: What the row is about.
    """
    rows = []
    for name, tensor in found.items():
        exact = truth[name].to(torch.promote_types(truth[name].dtype, torch.float64))
        rounded = exact.to(tensor.dtype)
        exact = torch.where(rounded.isfinite(), exact, rounded.to(exact.dtype))
        rows.append(check.equal(name, tensor, exact, ulps=0.0, least=allowed[name]))
    row = _of_tensors(check, rows, subject)
    if row.failed and row.absolute is not None:
        name = next(r.subject for r in rows if r.failed)
        row = replace(row, detail=f"{row.detail}; allowed is an error of {allowed[name]:.1e}")
    return row


def unlike(
    found: Named, expected: Named, of: str, *, like: Named | None = None, device: bool = True
) -> str:
    """The first difference in dtype, device, shape or strides; empty if there is none.

    Args:
        found: Tensors under check.
        expected: What they must be like.
        of: Whose ``expected`` are.
        like: What may be laid out otherwise: a gradient like the input given here, or in any way
            where ``expected`` is neither that nor contiguous, which is a kernel's own business.
        device: Whether the device counts.
    """
    if found.keys() != expected.keys():
        return f"returns {', '.join(found)}; {of} are {', '.join(expected)}"
    for name, tensor in found.items():
        other = expected[name]
        for attribute in ("dtype", "shape", *(["device"] if device else [])):
            a, b = getattr(tensor, attribute), getattr(other, attribute)
            if a != b:
                return f"{name}: {attribute} {_plain(a)}, {of} {_plain(b)}"
        if not _laid_out_as(tensor, other, like.get(name) if like else None):
            return f"{name}: strides {tensor.stride()}, {of} {other.stride()}"
    return ""


def _laid_out_as(tensor: Tensor, other: Tensor, like: Tensor | None) -> bool:
    strides, expected = effective_strides(tensor), effective_strides(other)
    if strides == expected:
        return True
    if like is None:
        return False
    bound = (effective_strides(like), effective_strides(other.contiguous()))
    return strides == bound[0] or expected not in bound


def effective_strides(tensor: Tensor) -> list[int]:
    """The strides that matter: none of a dimension of size 1, nor any of an empty tensor."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in pairs if size > 1 and tensor.numel()]


def largest(tensor: Tensor) -> float:
    """The largest absolute value among the finite elements, 0 if there is none."""
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _plain(attribute: object) -> str:
    if isinstance(attribute, torch.Size):
        return str(list(attribute))
    return str(attribute).removeprefix("torch.")
