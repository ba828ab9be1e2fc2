"""What every check is given, and how its findings become rows."""

import math
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_ops.check.causes import NOT_FINITE, explain, unsupported
from manual_ops.check.differences import Finding, machine_epsilon, place
from manual_ops.check.report import NotApplicableError, Row
from manual_ops.check.subject import Subject

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Exam:
    """An op under check.

    Attributes:
        given: The op on the inputs as they were given.
        reference: Another implementation on the same inputs.
        backend: Of torch.compile.
    """

    given: Subject
    reference: Subject | None = None
    backend: str | Callable[..., Any] = "aot_eager"

    @cached_property
    def precise(self) -> Subject:
        """The op on the inputs in float64, if it takes them and computes in it."""
        wide = self.given.to(torch.float64)
        if refusal(wide):
            return self.given
        with torch.no_grad():
            outputs = wide(*wide.tensors)
        if not all(o.dtype in (torch.float64, torch.complex128) for o in outputs):
            return self.given
        return self.single if _rounds_inputs(wide) else wide

    @cached_property
    def single(self) -> Subject:
        """The op on the inputs in float32, where kernels and layouts are those of real use.

        The op as it was given, if it does not take them.
        """
        narrow = self.given.to(torch.float32)
        return self.given if refusal(narrow) else narrow

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done with the inputs."""
        given, checked = (
            sorted({str(t.dtype).removeprefix("torch.") for t in op.tensors})
            for op in (self.given, self.precise)
        )
        notes = []
        if {"float32", "float16", "bfloat16", "complex64"} & set(checked):
            notes.append(
                f"derivatives checked in {', '.join(checked)}, as the op does not compute "
                "in float64: errors below a thousandth cannot be seen"
            )
        elif given != checked:
            notes.append(f"derivatives checked in float64; inputs given in {', '.join(given)}")
        if self.given.left_out:
            notes.append(
                f"not differentiated by {', '.join(self.given.left_out)}, which the op updates: "
                "let them require grad for that"
            )
        if self.given.random:
            notes.append("draws random numbers: the generator is seeded before every call")
        return tuple(notes)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: As in the report.
        rows: Runs it. Raises NotApplicableError where there is nothing to check; what else it
            raises is the op's failure.
        meaning: What is checked, a clause.
    """

    name: str
    rows: Callable[["Check", Exam], Iterable[Row]]
    meaning: str

    def __call__(self, exam: Exam) -> Iterator[Row]:
        """Run the check; never raises for what the op does."""
        try:
            yield from self.rows(self, exam)
        except Exception as error:
            yield self.raised(error)

    def raised(self, error: Exception, subject: str = "") -> Row:
        """A row on what the op raised: a failure, unless it says that there is nothing to check."""
        missing = str(error) if isinstance(error, NotApplicableError) else unsupported(error)
        if missing:
            return Row(self.name, "n/a", subject, detail=missing)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        found = f"{type(error).__name__}: {lines[0] if lines else ''}"
        found = textwrap.shorten(found, 240, placeholder=" ...")
        return Row(
            self.name,
            "FAIL",
            subject,
            where=_place_in_code(error),
            detail=found,
            cause=explain(self.name, error),
        )

    def attempt(self, subject: str, find: Callable[[], Row]) -> Row:
        """The row that ``find`` returns, or one on what it raises."""
        try:
            return find()
        except Exception as error:
            return self.raised(error, subject)

    def passed(self, subject: str = "", detail: str = "") -> Row:
        """A row that passes."""
        return Row(self.name, "pass", subject, detail=detail)

    def failed(self, subject: str, detail: str, where: str = "", cause: str = "") -> Row:
        """A row that fails."""
        cause = cause or explain(self.name)
        return Row(self.name, "FAIL", subject, where=where, detail=detail, cause=cause)

    def judged(self, subject: str, finding: Finding, cause: str = "") -> Row:
        """A row on derivatives that were compared with finite differences."""
        detail = ""
        if not finding.ok:
            detail = f"is {finding.analytic:.6g}, by finite differences {finding.numerical:.6g}"
            if math.isfinite(finding.numerical) and not math.isfinite(finding.analytic):
                cause = cause or f"It is {NOT_FINITE}"
        elif finding.kinks:
            places = f"{len(finding.kinks)} place{'s' if len(finding.kinks) > 1 else ''}"
            detail = f"not differentiable at {places}: {finding.kinks[0]}"
        return Row(
            self.name,
            "FAIL" if not finding.ok else "kink" if finding.kinks else "pass",
            subject,
            finding.absolute,
            finding.relative,
            finding.where,
            detail,
            "" if finding.ok else cause or explain(self.name),
        )

    def worst(
        self, findings: Iterable[tuple[str, Finding]], subject: str = "", cause: str = ""
    ) -> Row:
        """One row for the worst of several findings, by the name of what each is about."""
        order = ("pass", "kink", "FAIL")
        named = [(name, self.judged(subject, finding, cause)) for name, finding in findings]
        name, row = max(named, key=lambda pair: (order.index(pair[1].verdict), pair[1].relative))
        return replace(row, where=f"{name} {row.where}".strip())

    def equal(
        self,
        subject: str,
        found: Tensor,
        expected: Tensor,
        *,
        ulps: float = 64,
        least: float = 0.0,
        cause: str = "",
    ) -> Row:
        """A row on a tensor that must equal another up to rounding.

        Args:
            subject: What is compared.
            found: The tensor under check.
            expected: What it must be.
            ulps: Rounding allowed, in units in the last place of the largest element.
            least: Error allowed whatever the size of the elements.
            cause: Likely cause of a difference.
        """
        if found.shape != expected.shape:
            shapes = f"shape {list(found.shape)}, expected {list(expected.shape)}"
            return self.failed(subject, shapes, cause=cause)
        if not found.numel():
            return self.passed(subject)
        a, b = (
            t.detach().to_dense().to(torch.promote_types(t.dtype, torch.double))
            for t in (found, expected)
        )
        difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        difference = difference.nan_to_num(nan=torch.inf).flatten()
        index = int(difference.argmax())
        absolute, value, right = float(difference[index]), a.flatten()[index], b.flatten()[index]
        eps = machine_epsilon([found])
        size = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
        ok = absolute <= max(ulps * eps * size, least)
        return Row(
            self.name,
            "pass" if ok else "FAIL",
            subject,
            absolute,
            absolute / float(right.abs()) if right else absolute,
            place(index, tuple(a.shape)),
            "" if ok else _differing(value.item(), right.item()),
            "" if ok else cause or explain(self.name),
        )

    def all_equal(
        self,
        named: Iterable[tuple[str, Tensor, Tensor]],
        *,
        ulps: float = 64,
        cause: str = "",
        detail: str = "",
    ) -> Row:
        """One row on several tensors that must equal others: the first that does not, if any.

        Args:
            named: What is compared, found and expected.
            ulps: Rounding allowed, in units in the last place of the largest element.
            cause: Likely cause of a difference.
            detail: What to say if there is none.
        """
        rows = [self.equal(name, a, b, ulps=ulps, cause=cause) for name, a, b in named]
        return next((row for row in rows if row.failed), self.passed(detail=detail))


def refusal(op: Subject) -> Exception | None:
    """What the op raises when it is called, if it does: it may not know a dtype, say."""
    try:
        with torch.enable_grad():
            op(*op.leaf_tensors())
    except Exception as error:
        return error
    return None


def _rounds_inputs(op: Subject) -> bool:
    """Whether an op turns inputs in float64 into shorter numbers before it computes.

    Then inputs that differ by less than the rounding of float32 give the same outputs to the last
    bit, although by what a larger difference changes, the smaller one ought to be seen.
    """
    small, large = 2**-26, 2**-20

    def outputs(i: int, tensor: Tensor) -> Tensors:
        return op(*op.tensors[:i], tensor, *op.tensors[i + 1 :])

    def shows(a: Tensor, b: Tensor) -> bool:
        expected = (a - b).abs() * (small / large)
        return bool((expected > 1e-15 * a.abs()).any())

    for i, tensor in enumerate(op.tensors):
        if not tensor.is_floating_point() or not tensor.any():
            continue
        short = tensor.float().double()
        shrink = random_like(tensor, 0).sigmoid()
        little, more = (short * (1 - size * shrink) for size in (small, large))
        with torch.no_grad(), suppress(Exception):  # it need not be defined there
            at = outputs(i, short)
            unmoved = all(map(torch.equal, at, outputs(i, little)))
            if unmoved and any(map(shows, at, outputs(i, more))):
                return True
    return False


_NOT_THE_OP = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _place_in_code(error: BaseException) -> str:
    """The innermost line of the op's own code that an error comes from, if it comes from any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_NOT_THE_OP, "<"))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}" if own else ""


def _differing(found: complex, expected: complex) -> str:
    """Two numbers, with as many digits as it takes to tell them apart."""
    digits = 6 if f"{found:.6g}" != f"{expected:.6g}" else 17
    return f"is {found:.{digits}g}, expected {expected:.{digits}g}"


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Normal numbers of the shape, dtype, device and strides of ``tensor``."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    drawn = torch.randn(tensor.shape, generator=generator, dtype=wide)
    return torch.empty_like(tensor).copy_(drawn).detach()


def draw_like(tensors: Iterable[Tensor], seed: int) -> Tensors:
    """Normal numbers like each of ``tensors``."""
    return tuple(random_like(tensor, seed + i) for i, tensor in enumerate(tensors))
