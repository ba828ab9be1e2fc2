"""``python -m manual_ops.check``: finds the op, draws its inputs, names what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from manual_ops.check import CHECKS
from manual_ops.check.__main__ import main
from manual_ops.check.target import TargetError, TensorInput, build, find, parse_value

ONLY = ("--only", "gradient")

OWN_OP = """
import torch
import neighbour

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(x, weight):
        return x @ weight
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad * neighbour.FACTOR
"""


@pytest.fixture
def own_op(tmp_path: Path) -> str:
    (tmp_path / "op.py").write_text(OWN_OP)
    (tmp_path / "neighbour.py").write_text("FACTOR = 1.01")
    return f"{tmp_path / 'op.py'}:Scaled"


@pytest.mark.parametrize(
    "command",
    [
        "manual_ops.nn.BatchNorm2d --shape 4,3,2,2",
        "manual_ops.nn.BatchNorm2d --shape 4,3,2,2 --args 3 --kwargs eps=1e-3 affine=False",
        "manual_ops.nn.Linear --shape 2,4 --kwargs out_features=3",
        "manual_ops.nn.Conv2d --shape 1,2,4,4 --reference torch.nn.Conv2d",
        "manual_ops.nn.CrossEntropyLoss --shape 5,10 --integers 5:10",
        "manual_ops.nn.Embedding --integers 5:10",
        "manual_ops.functional.softmax --shape 3,4 --kwargs dim=1",
        "manual_ops.functional.softmax --shape 3,4 --args 1",
        "torch.nn.functional.layer_norm --shape 3,4 --shape weight=4 --kwargs normalized_shape=4,",
        "manual_ops.functional.log --shape= --range 0.1 2 --dtype float64",
    ],
)
def test_right_ops(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), *ONLY]) == 0
    assert "gradient: " in capsys.readouterr().out


def test_own_file(own_op: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One factor of 1.01 fails, in the row of its input."""
    assert main([own_op, "--shape", "3,4", "--shape", "4,2", *ONLY]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert failed[0].startswith("FAIL gradient: weight")


def test_json_and_html(own_op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    shapes = ("--shape", "3,4", "--shape", "4,2")
    assert main([own_op, *shapes, *ONLY, "--json", "--html", str(page)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert [row["verdict"] for row in report["rows"]] == ["pass", "FAIL"]
    assert "FAIL</b>" in page.read_text()


def test_as_a_program(own_op: str) -> None:
    command = [sys.executable, "-m", "manual_ops.check", own_op, "--shape", "3,4", *ONLY]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "missing a required argument: 'weight'" in done.stderr


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS)
    for line, (name, one) in zip(lines, CHECKS.items(), strict=True):
        assert line.startswith(f"{name} ")
        assert line.endswith(one.meaning)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "what is to be checked"),
        ("torch.tanh", "--shape 3,4"),
        ("torch.tahn --shape 2", "did you mean"),
        ("no_such_package.op --shape 2", "No module named 'no_such_package'"),
        ("no/such/file.py:op --shape 2", "there is no file"),
        ("torch.pi --shape 2", "expected a Function, a module or a function"),
        ("torch.tanh --shape 2,x", "expected sizes such as 3,4"),
        ("torch.tanh --shape -2", "expected sizes such as 3,4"),
        ("torch.tanh --integers 3", "expected sizes and a bound such as 5:10"),
        ("torch.tanh --integers 3:5", "no floating-point or complex tensor"),
        ("torch.softmax --shape 2 --kwargs dim", "expected NAME=VALUE"),
        ("torch.softmax --shape 2 --kwargs dim=7", "Dimension out of range"),
        ("torch.tanh --shape 2 --only gradint", "there is 'gradient'"),
        ("torch.tanh --shape 2 --dtype int8", "invalid choice"),
        ("torch.nn.AdaptiveAvgPool2d --shape 1,2,3,3", "needs output_size"),
        ("torch.nn.BatchNorm2d --shape 3,4", "expected 4D input"),
        ("torch.nn.Linear --shape 3,4 --kwargs in_features=0.5", "give its arguments with"),
        ("torch.Size --shape 2", "of another class, name an instance"),
        ("torch.softmax --shape 2 --args torch.nosuch", "expected a value such as 1"),
        ("torch.tanh --shape 2 --constant x", "expected sizes such as 3,4 or target=3,4"),
        ("torch.tanh --constant 2", "beside --constant, give an input"),
        ("torch.tanh --shape 2 --device nosuch", "--device nosuch: Expected one of cpu"),
        ("torch.tanh --shape 2 --backend nosuch", "list_backends(None) has no such name"),
        ("torch.tanh --shape 2 --html /no/such/page.html", "there is no folder /no/such"),
    ],
)
def test_wrong_command_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_names_that_a_file_does_not_have(own_op: str) -> None:
    with pytest.raises(TargetError, match="NAME is one of Scaled"):
        find(own_op.replace("Scaled", "scaled"))


def test_names_of_checks_without_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    command = "torch.tanh --shape 3 --only double-backward jvp-of-jvp --json"
    assert main(command.split()) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["check"] for row in rows] == ["double backward", "jvp of jvp"]


def test_inputs() -> None:
    assert TensorInput.parse("3,4") == TensorInput("", (3, 4))
    assert TensorInput.parse("weight=(4,)") == TensorInput("weight", (4,))
    assert TensorInput.parse_integers("t=5,2:10") == TensorInput("t", (5, 2), "integers", 10)
    assert TensorInput.parse_integers(":3") == TensorInput("", (), "integers", 3)
    drawn = TensorInput("", (200,)).draw(torch.float32, "cpu", (2.0, 3.0))
    assert drawn.dtype is torch.float32
    assert 2 <= drawn.min() < 2.1 < 2.9 < drawn.max() <= 3
    integers = TensorInput("", (200,), "integers", 3).draw(torch.float32, "cpu", None)
    assert integers.unique().tolist() == [0, 1, 2]
    booleans = TensorInput("", (200,), "booleans").draw(torch.float32, "cpu", None)
    assert booleans.unique().tolist() == [False, True]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from . import neighbour", "name it as package.module.name"),
        ("\n1 / 0", "ZeroDivisionError: division by zero (ADDRESS:2)"),
        ("import sys; sys.exit(f'{len(sys.argv)} arguments')", "SystemExit: 1 arguments"),
    ],
)
def test_files_that_cannot_be_imported(code: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    given = list(sys.argv)
    with pytest.raises(TargetError, match=re.escape(message.replace("ADDRESS", str(path)))):
        find(f"{path}:op")
    assert sys.argv == given


def test_values() -> None:
    texts = ("3", "1e-3", "(2,1)", "mean", "None", "torch.float16")
    assert [*map(parse_value, texts)] == [3, 1e-3, (2, 1), "mean", None, torch.float16]


def test_constant_parameters_are_drawn_anew() -> None:
    """A gradient that forgets the weight of a batch norm is right while the weight is one."""
    built = build(torch.nn.BatchNorm2d, [TensorInput("", (2, 3, 4, 4))], [], {})
    assert built.weight.unique().numel() == built.bias.unique().numel() == 3
