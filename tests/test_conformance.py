"""The table of conformance: the command works, and the page shows what there is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from manual_ops.testing.cases import CASES
from tests.conformance import COLUMNS, Outcome, Table, reason, row

ROOT = Path(__file__).parents[1]


def test_command() -> None:
    """Every column has a test of the op, and ours passes them all."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance", "--only", "hardsigmoid"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("| `hardsigmoid`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:-2]
    assert len(cells) == len(COLUMNS)
    assert all(cell in ("✓ ✓", "✓ ✗") for cell in cells), done.stdout
    # torch's kernel has one derivative alone.
    assert cells[[column.name for column in COLUMNS].index("double backward")] == "✓ ✗"
    assert "hardsigmoid_backward is not implemented" in done.stdout


def test_mark_needs_every_test_to_pass() -> None:
    passed = Outcome("relu", "vmap", "relu-matrix", "test_vmap[relu-matrix]", None)
    failed = Outcome("relu", "vmap", "relu-scalar", "test_vmap[relu-scalar]", "`E: no`")
    table = Table(["relu"], {"ours": [passed], "torch.nn": [passed, failed]})
    vmap = next(column for column in COLUMNS if column.name == "vmap")
    assert table.mark("ours", "relu", vmap) == "✓"
    assert table.mark("torch.nn", "relu", vmap) == "✗"
    assert table.mark("ours", "relu", COLUMNS[0]) == "n/a"
    assert list(table.failures()) == [
        "- `relu`, torch.nn, vmap: `E: no` in `test_vmap[relu-scalar]`; scalar"
    ]


def test_reason_is_one_line() -> None:
    with pytest.raises(AssertionError) as caught:
        torch.testing.assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert reason(caught.value) == "relative error 5.0e-01"
    assert reason(ValueError("\n`no` | yes\nmore")) == "`ValueError: 'no' \\| yes`"


def test_page_is_up_to_date() -> None:
    """A row for every op and a column for every check; only the marks need the command."""
    lines = (ROOT / "docs" / "conformance.md").read_text().splitlines()
    headings = row("op", *(column.name for column in COLUMNS), "saved bytes", "saved bytes, one")
    assert headings in lines
    start = lines.index(headings) + 2
    rows = [line.split("|")[1].strip(" `") for line in lines[start : lines.index("", start)]]
    assert rows == list(dict.fromkeys(case.op for case in CASES))
    assert not [line for line in lines[start:] if "| ✗" in line], "ours fails"
