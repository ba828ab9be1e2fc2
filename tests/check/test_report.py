"""The report: a table for terminals of 80 columns or more, for notebooks, as JSON, as an error."""

import json
import math

import pytest

from manual_ops.check import CheckError, Report, Row

ROWS = (
    Row("gradient", "pass", "x", 1e-11, 2e-11, "[1, 3]"),
    Row("gradient", "FAIL", "<w>", math.inf, 0.01, "[0, 0]", "is 1.29, expected 1.27", "a factor"),
    Row("double backward", "kink", "", 0.0, 0.0, "[2]", "not differentiable at 1 place: [0] has"),
    Row("third order, forward", "n/a", "jvp of grad of grad", detail="the Function has no jvp"),
)
REPORT = Report("Op(" + "argument=1, " * 12 + ")", ("on float32 x[3, 4]",), ROWS)


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_table_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(REPORT).splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "gradient: x pass 1.0e-11 2.0e-11 [1, 3]" in text
    assert "FAIL gradient: <w>: [0, 0]: is 1.29, expected 1.27 a factor" in text
    assert lines[-1] == "2 passed (1 beside a kink), 1 failed, 1 not applicable"


def test_columns_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    lines = str(REPORT).splitlines()
    heading = next(line for line in lines if line.startswith("check "))
    for row in ROWS:
        (line,) = (line for line in lines if line.startswith(f"{row.name}  "))
        assert line[heading.index("verdict") :].startswith(row.verdict)
        assert line[heading.index("where, what") :] == row.found


def test_notebook() -> None:
    page = REPORT._repr_html_()
    assert "gradient: &lt;w&gt;" in page
    assert "<w>" not in page
    assert page.count("<tr>") == 1 + len(ROWS)
    assert "<i>a factor</i>" in page


def test_json() -> None:
    content = json.loads(REPORT.to_json())
    assert not content["ok"]
    assert content["rows"][0] == {
        "check": "gradient",
        "verdict": "pass",
        "subject": "x",
        "absolute": 1e-11,
        "relative": 2e-11,
        "where": "[1, 3]",
    }
    assert content["rows"][1]["absolute"] == "inf"


def test_raises_with_the_table() -> None:
    with pytest.raises(CheckError) as raised:
        REPORT.raise_if_failed()
    assert str(REPORT) in str(raised.value)
    Report("op", (), (ROWS[0], *ROWS[2:])).raise_if_failed()


def test_rows_by_name() -> None:
    assert REPORT["gradient"] == ROWS[:2]
    assert REPORT.failures == ROWS[1:2]
    assert REPORT["hessian"] == ()
