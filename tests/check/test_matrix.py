"""The matrix of ops and checks: marks, failures, exemptions, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manual_ops.check import CHECKS, Row
from manual_ops.check.__main__ import main
from manual_ops.check.causes import UNSUPPORTED
from manual_ops.check.matrix import OPS, Matrix, Outcome
from manual_ops.testing.cases import CASES

LIBRARIES = ("manual_ops", "torch.nn")


def outcome(library: str, variant: str, verdict: str, check: str = "vmap") -> Outcome:
    return Outcome(library, "relu", variant, Row(check, verdict, detail=f"found_{verdict}"))


def matrix(*outcomes: Outcome) -> Matrix:
    return Matrix(LIBRARIES, ("relu",), ("gradient", "vmap"), outcomes)


def test_mark_needs_every_case_to_pass() -> None:
    found = matrix(
        outcome("manual_ops", "matrix", "pass"),
        outcome("manual_ops", "scalar", "n/a"),
        outcome("torch.nn", "matrix", "kink"),
        outcome("torch.nn", "scalar", "FAIL"),
        outcome("torch.nn", "scalar", "n/a", "gradient"),
        outcome("manual_ops", "matrix", "pass", "gradient"),
        Outcome("manual_ops", "relu", "scalar", Row("gradient", "n/a", detail=min(UNSUPPORTED))),
    )
    assert found.mark("manual_ops", "relu", "vmap") == "✓"
    assert found.mark("manual_ops", "relu", "gradient") == "–"
    assert found.mark("torch.nn", "relu", "vmap") == "✗"
    assert found.mark("torch.nn", "relu", "gradient") == "·"
    assert found.cell("relu", "vmap") == "✓ ✗"
    assert found.summary() == "manual_ops 1 of 2, torch.nn 0 of 1"
    assert list(found.failures()) == ["relu, torch.nn, vmap: found_FAIL (scalar)"]
    assert found.ok, "the exit code is that of the first library"
    assert not replace(found, libraries=("torch.nn",)).ok


def test_failures_of_one_kind_share_a_line() -> None:
    found = matrix(
        *(
            outcome("torch.nn", case, "FAIL", check)
            for case in ("matrix", "scalar")
            for check in ("gradient", "vmap")
        )
    )
    assert list(found.failures()) == ["relu, torch.nn, gradient; vmap: found_FAIL (every case)"]


def test_lines_fit_the_terminal() -> None:
    every = Matrix(("manual_ops",), OPS, tuple(CHECKS), ())
    for columns in (80, 120):
        lines = list(every.lines(columns))
        assert max(map(len, lines)) <= columns
        assert sum(line.startswith("relu ") for line in lines) >= len(dict(every.groups()))


def test_markdown_shows_every_op_and_check() -> None:
    saved = Row("saved bytes", "pass", detail="8 bytes")
    outcomes = tuple(Outcome("manual_ops", op, "matrix", saved) for op in OPS)
    page = "\n".join(Matrix(LIBRARIES, OPS, tuple(CHECKS), outcomes).markdown("command"))
    assert page.count(", matrix: 8 bytes") == len(OPS)
    for op in OPS:
        assert f"\n| `{op}` | " in page
    for name, one in CHECKS.items():
        assert f" | {name} |" in page
        assert f"\n- {name}: {one.meaning}\n" in page
    reasons = {why for case in CASES for name, why in case.exempt.items() if name in CHECKS}
    assert reasons
    for why in reasons:
        assert f"; {why}".replace("_", "\\_") in page


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    """Ours passes; torch's hardsigmoid has one derivative alone."""
    command = ["--all", "--only-ops", "hardsigmoid", "--only", "gradient", "double-backward"]
    assert main([*command, "--library", "manual_ops", "torch.nn"]) == 0
    printed = capfd.readouterr().out
    assert "✓ ✓       ✓ ✗" in printed
    assert "hardsigmoid_backward is not implemented" in printed

    assert main([*command, "--library", "torch.nn", "--json"]) == 1
    rows = json.loads(capfd.readouterr().out)
    assert {row["verdict"] for row in rows if row["check"] == "double backward"} == {"FAIL"}
    assert {row["library"] for row in rows} == {"torch.nn"}


def test_page_is_up_to_date() -> None:
    """A row for every op and a column for every check; only the marks need the command."""
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    every = Matrix(LIBRARIES, OPS, tuple(CHECKS), ())
    for _, names in every.groups():
        _, _, table = page.partition(f"| op | {' | '.join(names)} |\n")
        rows = table.split("\n\n")[0].splitlines()[1:]
        assert [row.split("|")[1].strip(" `") for row in rows] == list(OPS)
        assert not [row for row in rows if "| ✗" in row or "| –" in row], "ours fails"
