"""docs/check.md: the commands in its table work; `tests/test_docs.py` runs its examples."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from manual_ops.check.__main__ import main
from manual_ops.check.target import find

PAGE = (Path(__file__).parents[2] / "docs" / "check.md").read_text()
COMMANDS = re.findall(r"^\| `([^`]*--(?:shape|all)[^`]*)` \|", PAGE, re.MULTILINE)


@pytest.fixture
def my_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (code,) = re.findall(r"<!-- my_op.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_op.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return code


def test_gradcheck_does_not_see_the_mistake(my_op: str) -> None:
    softmax = find("my_op.py:Softmax")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax.apply, x)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, my_op: str) -> None:
    assert main([*shlex.split(command), "--only", "gradient"]) == 0


def test_commands_are_found() -> None:
    assert len(COMMANDS) == 11
