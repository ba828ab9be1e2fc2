"""What a check finds: rows of verdicts, and the report that shows them."""

import html
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Literal

SAME = "As in "  # how a cause begins that refers to another row's

Verdict = Literal["pass", "kink", "n/a", "FAIL"]


class CheckError(AssertionError):
    """An op failed a check; the message is the report."""


class NotApplicableError(Exception):
    """A check has nothing to say about this op; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """One finding of one check.

    Attributes:
        check: Name of the check.
        verdict: ``"pass"``; ``"kink"``: right wherever there is one right answer, and the op is
            not differentiable at the places named; ``"n/a"``: nothing to check; or ``"FAIL"``.
        subject: Which input, output or setting the row is about, if not the op as a whole.
        absolute: Largest absolute error.
        relative: The error of the same element, relative to its size.
        where: The element.
        detail: What was found, or why there was nothing to check.
        cause: The likely cause of a failure, and what to do.
    """

    check: str
    verdict: Verdict
    subject: str = ""
    absolute: float | None = None
    relative: float | None = None
    where: str = ""
    detail: str = ""
    cause: str = ""

    @property
    def name(self) -> str:
        """The check, and what it is about."""
        return f"{self.check}: {self.subject}" if self.subject else self.check

    @property
    def found(self) -> str:
        """Where, and what."""
        where = self.where.rstrip(":")
        return (": " if self.failed else "; ").join(filter(None, (where, self.detail)))

    @property
    def failed(self) -> bool:
        """Whether the verdict is a failure."""
        return self.verdict == "FAIL"


@dataclass(frozen=True)
class Report:
    """The rows of all checks of one op; prints as a table, and shows as one in a notebook.

    Attributes:
        title: What was checked.
        notes: On which inputs, and what was done with them.
        rows: The findings, in the order of the checks.
    """

    title: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.failed)

    def __getitem__(self, check: str) -> tuple[Row, ...]:
        """The rows of the check of this name."""
        return tuple(row for row in self.rows if row.check == check)

    def raise_if_failed(self) -> None:
        """Raise the report, if a check failed.

        Raises:
            CheckError: With the table as its message.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        if not self.ok:
            raise CheckError(f"\n{self}")

    def summary(self) -> str:
        """How many rows have which verdict."""
        counts = Counter(row.verdict for row in self.rows)
        passed = f"{counts['pass'] + counts['kink']} passed"
        kinks = f" ({counts['kink']} beside a kink)" if counts["kink"] else ""
        return f"{passed}{kinks}, {counts['FAIL']} failed, {counts['n/a']} not applicable"

    def __str__(self) -> str:
        return "\n".join(self._lines(shutil.get_terminal_size((120, 24)).columns))

    def _lines(self, columns: int) -> Iterator[str]:
        """The table, to fit a terminal of so many columns."""
        yield from _wrapped(self.title, columns, "    ")
        for note in self.notes:
            yield from _wrapped(f"  {note}", columns, "    ")
        yield ""
        cells = [
            (row.name, row.verdict, _number(row.absolute), _number(row.relative), row.found)
            for row in self.rows
        ]
        table = [_HEADINGS, *cells]
        name, *middle, _ = (max(map(len, column)) for column in zip(*table, strict=True))
        name = min(name, columns // 3)
        found = max(columns - name - sum(middle) - 2 * len(middle) - 2, 20)
        for first, *others, last in table:
            lefts, rights = _wrapped(first, name, "  "), _wrapped(last, found)
            values = "  ".join(map(str.ljust, others, middle))
            for left, value, right in zip_longest(lefts, [values], rights, fillvalue=""):
                yield f"{left:{name}}  {value:{len(values)}}  {right}".rstrip()
        yield ""
        for row in self.failures:
            if row.cause.startswith(SAME):
                continue
            yield from _wrapped(f"FAIL {row.name}: {row.found}", columns, "     ")
            yield from _wrapped(f"     {row.cause}" if row.cause else "", columns, "     ")
        yield self.summary()

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        rows = "".join(_html_row(row) for row in self.rows)
        heading = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEADINGS)
        notes = "".join(f"<br>{html.escape(note)}" for note in self.notes)
        return (
            f"<p><b>{html.escape(self.title)}</b>{notes}</p>"
            f"<table><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{self.summary()}</p>"
        )

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; numbers that are not finite become strings.

        Args:
            indent: Spaces of indentation, None for one line.
        """
        rows = [
            {k: _plain(v) for k, v in asdict(row).items() if v not in ("", None)}
            for row in self.rows
        ]
        content = {"title": self.title, "notes": self.notes, "ok": self.ok, "rows": rows}
        return json.dumps(content, indent=indent, allow_nan=False)


_HEADINGS = ("check", "verdict", "error", "relative", "where, what")

# To be read on white and on black.
_COLOURS: dict[str, str] = {
    "FAIL": "#e03131",
    "kink": "#c77700",
    "pass": "#2f9e44",
    "n/a": "#868e96",
}


def _html_row(row: Row) -> str:
    found = html.escape(row.found)
    if row.cause:
        found += f"<br><i>{html.escape(row.cause)}</i>"
    verdict = f"<b style='color:{_COLOURS[row.verdict]}'>{row.verdict}</b>"
    values = (html.escape(row.name), verdict, _number(row.absolute), _number(row.relative))
    style = "text-align:left;vertical-align:top"
    cells = [f"<td style='{style};white-space:nowrap'>{value}</td>" for value in values]
    return f"<tr>{''.join(cells)}<td style='{style}'>{found}</td></tr>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent)
