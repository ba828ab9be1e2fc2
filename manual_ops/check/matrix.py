"""Every check on every op of a library: ``python -m manual_ops.check --all``."""

import platform
import sys
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby, product
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch

import manual_ops
from manual_ops.check import compilation
from manual_ops.check.causes import UNSUPPORTED
from manual_ops.check.report import Report, Row
from manual_ops.check.run import CHECKS, check, select
from manual_ops.testing.cases import CASES, OpCase
from manual_ops.testing.compositions import torch_op

OPS = tuple(dict.fromkeys(case.op for case in CASES))

LIBRARIES: dict[str, Any] = {
    "manual_ops": manual_ops.functional,
    "torch.nn": SimpleNamespace(**{name: torch_op(name) for name in OPS}),
}

# A compilation takes longer than all other checks: one case of an op stands for all, the first that
# updates nothing in place.
FIRST_CASES = tuple({case.op: case for case in reversed(CASES) if not case.buffers}.values())[::-1]
FIRST_CASE_ALONE = tuple(
    name for name, one in CHECKS.items() if one.rows.__module__ == compilation.__name__
)


def check_case(
    case: OpCase,
    library: Any = manual_ops.functional,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    device: str = "cpu",
    backend: str = "aot_eager",
) -> Report:
    """Check the op of a case, in float32, against its reference.

    Args:
        case: The op and its arguments; checks that it is exempt from are left out.
        library: Where the op is looked up.
        only: Names of the checks to run; by default all.
        skip: Names of checks to leave out.
        device: Where the arguments are.
        backend: Of torch.compile.
    """
    arguments = case.sample(torch.float32, device)
    for name in case.differentiable:
        arguments[name].requires_grad_()
    return check(
        getattr(library, case.op),
        keywords=arguments,
        reference=case.reference,
        mutates=case.buffers,
        only=only,
        skip=[*skip, *case.exempt],
        backend=backend,
    )


@dataclass(frozen=True)
class Outcome:
    """One row of the report on a case.

    Attributes:
        library: Whose op was checked.
        op: Its name.
        variant: Of the case.
        row: What was found.
    """

    library: str
    op: str
    variant: str
    row: Row


@dataclass(frozen=True)
class Matrix:
    """What every check found on every op; prints as tables of ops by checks.

    Attributes:
        libraries: The marks within a cell.
        ops: The rows.
        checks: The columns.
        outcomes: Everything that was found.
    """

    libraries: tuple[str, ...]
    ops: tuple[str, ...]
    checks: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed on the first library."""
        return not any(o.row.failed for o in self.outcomes if o.library == self.libraries[0])

    def of(self, library: str, op: str, check: str) -> list[Outcome]:
        """The outcomes that make up one mark."""
        wanted = (library, op, check)
        return [o for o in self.outcomes if (o.library, o.op, o.row.check) == wanted]

    def mark(self, library: str, op: str, check: str) -> str:
        """``✗`` if a case failed, ``–`` if one is unsupported, ``·`` if there is none, or ``✓``."""
        rows = [outcome.row for outcome in self.of(library, op, check)]
        if any(row.failed for row in rows):
            return "✗"
        if any(row.verdict == "n/a" and row.detail in UNSUPPORTED for row in rows):
            return "–"
        return "✓" if any(row.verdict != "n/a" for row in rows) else "·"

    def cell(self, op: str, check: str) -> str:
        """The marks of all libraries."""
        return " ".join(self.mark(library, op, check) for library in self.libraries)

    def groups(self) -> Iterator[tuple[str, list[str]]]:
        """The checks by what they are about: the name of their module."""
        for module, names in groupby(self.checks, lambda name: CHECKS[name].rows.__module__):
            yield module.rpartition(".")[2], list(names)

    def summary(self) -> str:
        """How many marks of each library are ``✓``."""
        parts = []
        for library in self.libraries:
            marks = [self.mark(library, op, name) for op, name in product(self.ops, self.checks)]
            parts.append(f"{library} {marks.count('✓')} of {len(marks) - marks.count('·')}")
        return ", ".join(parts)

    def failures(self) -> Iterator[str]:
        """One line for each failure: op, library, checks, what was found first, and the cases."""
        lines: dict[tuple[str, ...], list[str]] = {}
        for op, library, name in product(self.ops, self.libraries, self.checks):
            outcomes = self.of(library, op, name)
            failed = [outcome for outcome in outcomes if outcome.row.failed]
            if failed:
                variants = {o.variant: None for o in failed}
                every = len(variants) == len({o.variant for o in outcomes}) > 1
                row = failed[0].row
                found = f"{row.subject}: {row.found}" if row.subject else row.found
                key = (op, library, found, "every case" if every else ", ".join(variants))
                lines.setdefault(key, []).append(name)
        for (op, library, found, cases), names in lines.items():
            yield f"{op}, {library}, {'; '.join(names)}: {found} ({cases})"

    def exemptions(self) -> Iterator[str]:
        """One line for each reason to leave a check out."""
        exempt: dict[tuple[str, str, str], list[str]] = {}
        for case in CASES:
            for name, why in case.exempt.items():
                if case.op in self.ops and name in self.checks:
                    exempt.setdefault((case.op, name, why), []).append(case.variant)
        for (op, name, why), cases in exempt.items():
            yield f"{op}, {name}: {', '.join(cases)}; {why}"

    def lines(self, columns: int) -> Iterator[str]:
        """Tables that fit a terminal of so many columns."""
        width = max(map(len, ("op", *self.ops)))
        for group, names in self.groups():
            yield f"{group}"
            while names:
                headings: list[str] = []
                used = width
                while names and (not headings or used + 2 + _breadth(names[0]) <= columns):
                    used += 2 + _breadth(names[0])
                    headings.append(names.pop(0))
                yield from self._table(headings, width)
                yield ""
        for failure in self.failures():
            yield from textwrap.wrap(failure, columns, subsequent_indent="    ")
        yield f"✓ {self.summary()}"

    def _table(self, checks: Sequence[str], width: int) -> Iterator[str]:
        broken = [textwrap.wrap(name, _breadth(name)) for name in checks]
        for line in range(height := max(map(len, broken))):
            cells = [
                ([""] * (height - len(words)) + words)[line].ljust(_breadth(name))
                for name, words in zip(checks, broken, strict=True)
            ]
            yield "  ".join([("op" if line == height - 1 else "").ljust(width), *cells]).rstrip()
        for op in self.ops:
            cells = [self.cell(op, name).ljust(_breadth(name)) for name in checks]
            yield "  ".join([op.ljust(width), *cells]).rstrip()

    def markdown(self, command: str) -> Iterator[str]:
        """The lines of a page, made by ``command``."""
        yield "# What the ops keep to\n"
        yield (
            f"manual_ops {manual_ops.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, CPU:\n"
        )
        yield f"```sh\n{command}\n```\n"
        yield (
            f"Each cell is {', then '.join(self.libraries)}. ✓: the check passed on every case of "
            "the op in `manual_ops/testing/cases.py` that it applies to; ✗: it failed on some, and "
            "the list below says on which; –: some do not support what is checked, and the others "
            "passed; ·: there is nothing to check. In the columns of compilation one case "
            f"of an op stands for all. ✓: {self.summary()}.\n"
        )
        for group, names in self.groups():
            yield f"## {group.capitalize()}\n"
            yield _row("op", *names)
            yield _row(*["---"] * (len(names) + 1))
            for op in self.ops:
                yield _row(f"`{op}`", *(self.cell(op, name) for name in names))
            yield ""
            yield from (f"- {name}: {CHECKS[name].meaning}" for name in names)
            yield ""
        if "saved bytes" in self.checks:
            yield "## Saved bytes\n\nFor backward, in the first case of each op, in float32:\n"
            for op in self.ops:
                first = self.of(self.libraries[0], op, "saved bytes")[0]
                yield f"- {_escaped(op)}, {first.variant}: {first.row.detail}"
            yield ""
        yield "## Failures\n\nThe first of its kind, and the cases that fail:\n"
        yield from (f"- {_escaped(line)}" for line in self.failures())
        yield "\n## Exemptions\n\nWhat is not asked of ours or of torch.nn's, and why:\n"
        yield from (f"- {_escaped(line)}" for line in self.exemptions())

    def to_json(self) -> list[dict[str, Any]]:
        """Every row, with its library, op and case."""
        return [
            {"library": o.library, "op": o.op, "case": o.variant}
            | {k: v for k, v in asdict(o.row).items() if v not in ("", None)}
            for o in self.outcomes
        ]


def run_matrix(
    libraries: Sequence[str] = ("manual_ops",),
    ops: Sequence[str] = OPS,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    processes: int = 2,
) -> Matrix:
    """Run the checks on every case of ``ops``, in several processes; says how far on stderr."""
    checks = tuple(one.name for one in select(only, skip))
    jobs = [(library, op, checks) for op in ops for library in libraries]
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done, (job, found) in enumerate(zip(jobs, pool.map(_run_op, jobs), strict=True), 1):
            outcomes += found
            print(f"{done} of {len(jobs)}: {job[1]}, {job[0]}", file=sys.stderr)
    return Matrix(tuple(libraries), tuple(ops), checks, tuple(outcomes))


def _run_op(job: tuple[str, str, tuple[str, ...]]) -> list[Outcome]:
    library, op, checks = job
    torch.set_num_threads(1)  # the processes share the cores
    outcomes = []
    for case in (case for case in CASES if case.op == op):
        skip = () if case in FIRST_CASES else FIRST_CASE_ALONE
        report = check_case(case, LIBRARIES[library], only=checks, skip=skip)
        outcomes += [Outcome(library, op, case.variant, row) for row in report.rows]
    return outcomes


def _breadth(name: str) -> int:
    return max(map(len, name.split()))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("<", "\\<").replace("*", "\\*").replace("_", "\\_")
