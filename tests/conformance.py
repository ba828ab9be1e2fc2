"""The contract tests on our ops and on torch.nn's: ``python -m tests.conformance`` prints a table.

Each library is tested in a process of its own, by pytest, with the tests of ``tests/contract`` as
they are; here stands only which tests make up a column. Every case of ``manual_ops.testing.cases``
counts, in the columns of compilation the first of each op.
"""

import argparse
import contextlib
import platform
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch._dynamo.exc import TorchDynamoException

import manual_ops
from manual_ops.testing.cases import CASES, OpCase
from tests import harness
from tests.harness import FIRST_CASES, requiring, saved_bytes

COMMAND = "python -m tests.conformance > docs/conformance.md"
LIBRARIES = {
    "ours": manual_ops.functional,
    "torch.nn": SimpleNamespace(**vars(torch_functional), log=torch.log),
}


@dataclass(frozen=True)
class Column:
    """A property of an op, and the tests that check it.

    Attributes:
        name: The heading.
        meaning: What is checked.
        tests: What the names of the tests begin with.
        sampled: The first case of an op stands for all.
    """

    name: str
    meaning: str
    tests: tuple[str, ...]
    sampled: bool = False


COLUMNS = (
    Column(
        "values",
        "outputs, gradients and buffers in float64, float32, bfloat16 and float16, as accurate as "
        "torch.nn's against float64",
        ("test_values_and_gradients[",),
    ),
    Column("gradcheck", "`gradcheck` with batched gradients", ("test_first_order[",)),
    Column("forward mode", "`gradcheck` of forward mode", ("test_forward_mode[single-",)),
    Column(
        "forward mode, batched",
        "`gradcheck` of forward mode with batched tangents, by its own, older vmap",
        ("test_forward_mode[batched-",),
    ),
    Column(
        "double backward",
        "`gradgradcheck` with batched gradients; grad of grad",
        (
            "test_second_order[",
            "test_second_order_routes[reverse_over_reverse-",
            "test_second_order_routes[grad_of_grad-",
        ),
    ),
    Column(
        "forward over reverse",
        "`gradgradcheck` of jvp of grad",
        ("test_forward_over_reverse[", "test_second_order_routes[forward_over_reverse-"),
    ),
    Column(
        "reverse over forward", "grad of jvp", ("test_second_order_routes[reverse_over_forward-",)
    ),
    Column("jvp of jvp", "forward mode twice", ("test_second_order_routes[jvp_of_jvp-",)),
    Column("third order", "backward of double backward", ("test_third_order[reverse-",)),
    Column(
        "third order, forward",
        "jvp of jvp of jvp, jvp of grad of grad",
        ("test_third_order[forward-", "test_third_order[forward_over_reverse-"),
    ),
    Column("vmap", "batched arguments, own and shared parameters", ("test_vmap[",)),
    Column(
        "per-sample",
        "`vmap(grad)`, and backward through `vmap`",
        ("test_per_sample_gradients[", "test_backward_through_vmap["),
    ),
    Column(
        "jacobian, hessian",
        "`jacrev`, `jacfwd`, and `jacfwd(jacrev)`",
        ("test_jacobian_by_both_modes[", "test_hessian["),
    ),
    Column(
        "compile",
        "`torch.compile(fullgraph=True)`, forward and backward, of two batch sizes",
        ("test_forward_and_backward[", "test_batch_size_may_change["),
        sampled=True,
    ),
    Column(
        "compiled transforms",
        "`torch.compile(fullgraph=True)` of `grad`, `jvp`, `vmap` and `vmap(grad)`",
        (
            "test_compiled_grad[",
            "test_compiled_jvp[",
            "test_compiled_vmap[",
            "test_compiled_per_sample_gradients[",
        ),
        sampled=True,
    ),
    Column("autocast", "dtypes and values under bfloat16 autocast", ("test_autocast[",)),
    Column(
        "layouts",
        "channels_last, transposed, strided and expanded inputs and output gradients; the memory "
        "format of the results",
        ("test_input_layout[", "test_grad_output_layout["),
    ),
    Column("empty", "no samples, or nothing to average", ("test_empty_batch[",)),
)


@dataclass(frozen=True)
class Outcome:
    """One test: what it belongs to, and the error if it failed."""

    op: str
    column: str
    case: str
    test: str
    error: str | None


class Recorder:
    """A pytest plugin that runs only what the table shows, and keeps the outcomes."""

    def __init__(self, ops: list[str]) -> None:
        self.ops = ops
        self.outcomes: list[Outcome] = []

    def column_of(self, item: pytest.Item) -> Column | None:
        """The column that a test belongs to, if the table shows it."""
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if not isinstance(case, OpCase) or case.op not in self.ops:
            return None
        for column in COLUMNS:
            if item.name.startswith(column.tests):
                return column if not column.sampled or case in FIRST_CASES else None
        return None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.column_of(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Any:
        report = yield
        if report.failed or (report.when == "call" and report.passed):
            case = item.callspec.params["case"]
            error = reason(call.excinfo.value) if call.excinfo else None
            column = self.column_of(item).name
            self.outcomes.append(Outcome(case.op, column, case.id, item.name, error))
        return report


def reason(error: BaseException) -> str:
    """One line: the relative error if values differ, else the first line of the message."""
    text = str(error)
    if found := re.search(r"relative difference: ([\d.e+-]+|inf|nan)", text, re.IGNORECASE):
        return f"relative error {float(found[1]):.1e}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Dynamo's first line names the kind of error alone.
    shown = " ".join(lines[: 2 if isinstance(error, TorchDynamoException) else 1])
    shown = shown[:200].replace("`", "'").replace("|", "\\|")
    return f"`{type(error).__name__}: {shown}`"


def outcomes_of(library: str, ops: list[str]) -> list[Outcome]:
    """Run the contract tests of ``ops`` on a library, in this process."""
    harness.library = LIBRARIES[library]
    recorder = Recorder(ops)
    contract = str(Path(__file__).with_name("contract"))
    arguments = ["-qq", "--tb=no", "--no-summary", "-p", "no:cacheprovider", contract]
    arguments += ["-W", "ignore:There is a performance drop"]  # vmap's loop: slow, not wrong
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(arguments, plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r} on {library}")
    return recorder.outcomes


@dataclass(frozen=True)
class Table:
    """The outcomes of both libraries, by name."""

    ops: list[str]
    outcomes: dict[str, list[Outcome]]

    def of(self, library: str, op: str, column: Column) -> list[Outcome]:
        """The outcomes that make up one mark."""
        every = self.outcomes[library]
        return [o for o in every if (o.op, o.column) == (op, column.name)]

    def mark(self, library: str, op: str, column: Column) -> str:
        """Whether every test passed."""
        outcomes = self.of(library, op, column)
        if not outcomes:
            return "n/a"
        return "✗" if any(outcome.error for outcome in outcomes) else "✓"

    def rows(self) -> Iterator[str]:
        """The table."""
        headings = [column.name for column in COLUMNS]
        yield row("op", *headings, "saved bytes", "saved bytes, one")
        yield row(*["---"] * (len(headings) + 3))
        for op in self.ops:
            cells = (
                " ".join(self.mark(library, op, column) for library in LIBRARIES)
                for column in COLUMNS
            )
            yield row(f"`{op}`", *cells, saved_by_both(op), saved_by_both(op, 1))

    def failures(self) -> Iterator[str]:
        """One line for each error: where, the first test that met it, and the cases that fail."""
        columns: dict[tuple[str, ...], list[str]] = {}
        tests: dict[tuple[str, ...], str] = {}
        for op, column, library in product(self.ops, COLUMNS, LIBRARIES):
            outcomes = self.of(library, op, column)
            failed = [outcome for outcome in outcomes if outcome.error]
            if failed:
                every = {o.case for o in failed} == {o.case for o in outcomes}
                cases = "every case" if every else variants(op, [o.case for o in failed])
                key = (op, library, failed[0].error, cases)
                columns.setdefault(key, []).append(column.name)
                tests.setdefault(key, failed[0].test)
        for key, names in columns.items():
            op, library, error, cases = key
            yield f"- `{op}`, {library}, {'; '.join(names)}: {error} in `{tests[key]}`; {cases}"

    def exemptions(self) -> Iterator[str]:
        """One line for each reason to exempt cases of an op from a check."""
        exempt: dict[tuple[str, str, str], list[str]] = {}
        for case in CASES:
            for check, why in case.exempt.items():
                exempt.setdefault((case.op, check, why), []).append(case.id)
        for (op, check, why), cases in exempt.items():
            if op in self.ops:
                yield f"- `{op}`, {check}: {variants(op, cases)}; {why}"

    def summary(self) -> str:
        """How many cells of each library are ✓."""
        marks = {
            library: [self.mark(library, op, column) for op in self.ops for column in COLUMNS]
            for library in LIBRARIES
        }
        return ", ".join(
            f"{library} {found.count('✓')} of {len(found) - found.count('n/a')}"
            for library, found in marks.items()
        )


def variants(op: str, cases: list[str]) -> str:
    """The cases by the names that tell them apart, each once."""
    return ", ".join(dict.fromkeys(case.removeprefix(f"{op}-") for case in cases))


def saved_by_both(op: str, gradients: int | None = None) -> str:
    """Bytes saved for the backward of the op's first case, for the first few gradients or all."""
    case = next(case for case in CASES if case.op == op)
    return " / ".join(
        str(saved_bytes(partial(getattr(library, op), **arguments))[0])
        for library in LIBRARIES.values()
        for arguments in [requiring(case.sample(torch.float32), case.differentiable[:gradients])]
    )


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def page(table: Table) -> Iterator[str]:
    """The lines of ``docs/conformance.md``."""
    yield "# What the ops keep to, beside torch.nn's"
    yield ""
    yield (
        f"manual_ops {manual_ops.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, CPU:"
    )
    yield ""
    yield f"```bash\n{COMMAND}\n```"
    yield ""
    yield (
        "Each cell is ours, then torch.nn's. ✓: every test passed on every case of the op; ✗: some "
        "test failed, and the list below says which; n/a: there is nothing to test. The tests are "
        "those of `tests/contract`, run once with our op and once with torch's in its place. "
        f"✓: {table.summary()}."
    )
    yield ""
    yield from table.rows()
    yield ""
    yield row("column", "what is checked")
    yield row("---", "---")
    for column in COLUMNS:
        first = ", first case of the op alone" if column.sampled else ""
        yield row(column.name, column.meaning + first)
    yield row("saved bytes", "for backward, of the op's first case in float32, ours / torch.nn's")
    yield row("saved bytes, one", "the same where only the first gradient is asked for")
    yield ""
    yield "## Failures"
    yield ""
    yield "The first error of its kind, the test that met it, and the cases that fail:"
    yield ""
    yield from table.failures()
    yield ""
    yield "## Exemptions"
    yield ""
    yield "Cases that a check leaves out, ours and torch.nn's, by its name in `testing/cases.py`:"
    yield ""
    yield from table.exemptions()


def main() -> None:
    """Print the page; pytest's progress goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = list(dict.fromkeys(case.op for case in CASES))
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="rows of the table")
    ops = parser.parse_args().only
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        found = processes.map(partial(outcomes_of, ops=ops), LIBRARIES)
        table = Table(ops, dict(zip(LIBRARIES, found, strict=True)))
    print(*page(table), sep="\n")


if __name__ == "__main__":
    main()
