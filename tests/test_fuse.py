"""The switch that compiles formulas: the same gradients, and none the worse without a compiler."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import manual_ops
from manual_ops import _fuse
from manual_ops import functional as F
from manual_ops._fuse import fuse, fusible
from manual_ops._precision import accumulate_wide
from manual_ops.ops._normalisation import Needs, _rows_as_groups
from manual_ops.testing.cases import OpCase
from tests.harness import cases_for, first, subject


def test_switch() -> None:
    assert not fuse.enabled
    with manual_ops.fuse():
        assert fuse.enabled
        with manual_ops.fuse(False):
            assert not fuse.enabled
        assert fuse.enabled
    assert not fuse.enabled
    manual_ops.fuse()
    assert fuse.enabled
    manual_ops.fuse(False)
    assert not fuse.enabled


def test_formula_is_compiled_inside_the_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(torch, "compile", lambda f: lambda *args: ran.append(f) or f(*args))
    formula, g = fusible(lambda g, x: g * x), torch.ones(3)
    with torch.no_grad():
        formula(g, g)
        assert ran == []
        with manual_ops.fuse():
            formula(g, g)
            formula(g, g)
    assert len(ran) == 2


def test_more_graphs_than_dynamo_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it compiles no more runs as it does without the switch."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    ran = []
    formula = fusible(lambda g: 2 * g, lambda g: ran.append(g.dtype) or 2 * g)
    with torch._dynamo.config.patch(recompile_limit=1), manual_ops.fuse(), torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.float32):
            assert formula(torch.ones(3, dtype=dtype)).tolist() == [2, 2, 2]
    assert ran == [torch.float64]


@pytest.mark.parametrize("op", ["relu", "gelu", "hardswish"])
def test_same_gradients(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every order; the compiled formula runs in the first alone."""
    compiled = []
    compile_ = torch.compile

    def counting(formula):
        run = compile_(formula, backend="aot_eager")
        return lambda *args: compiled.append(op) or run(*args)

    monkeypatch.setattr(torch, "compile", counting)
    torch.manual_seed(0)
    x = (3 * torch.randn(6, 50, dtype=torch.float64)).requires_grad_()
    grad_output = torch.randn_like(x)

    def gradients() -> list[torch.Tensor]:
        y = getattr(F, op)(x)
        (plain,) = torch.autograd.grad(y, x, grad_output, retain_graph=True)
        (first,) = torch.autograd.grad(y, x, grad_output, create_graph=True)
        second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else first
        return [plain, first, second]

    expected = gradients()
    assert compiled == []
    with manual_ops.fuse():
        found = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert compiled in ([], [op]), "compiled once, or by an earlier test"


def test_no_formula_takes_the_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo keeps few graphs for one function: each formula has to be one by itself."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    limits = {"recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    g = torch.ones(3)
    with torch._dynamo.config.patch(limits), manual_ops.fuse(), torch.no_grad():
        for power in (1, 2, 3):
            formula = fusible(accumulate_wide(lambda g, x, power=power: g * x**power))
            assert formula(g, 2 * g).tolist() == [2.0**power] * 3


@cases_for()
def test_gradients_of_every_case(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))

    def gradients() -> list[torch.Tensor]:
        arguments = case.sample()
        wanted = [arguments[name].requires_grad_() for name in case.differentiable]
        torch.manual_seed(1)
        output = first(subject(case)(**arguments))
        torch.manual_seed(2)
        return list(torch.autograd.grad(output, wanted, torch.randn_like(output)))

    expected = gradients()
    with manual_ops.fuse():
        found = gradients()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("count", [192, 100])
def test_inductor(count: int) -> None:
    """The real compiler, where the machine has one."""
    rows, g = torch.randn(2, count, 40)
    mean, rstd = rows.mean(1, keepdim=True), 1 / rows.std(1, keepdim=True)
    args = (rows, mean, rstd, torch.rand(40), Needs(True, True, True))
    formula = fusible(_rows_as_groups)  # afresh: no other test has compiled it
    with torch.no_grad():
        plain = formula(g, *args)
        with manual_ops.fuse():
            fused = formula(g, *args)
    torch.testing.assert_close([t.flatten() for t in fused], [t.flatten() for t in plain])
    assert _fuse._has_compiler


def test_errors_of_the_formula_are_raised() -> None:
    def wrong(grad_output: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return grad_output @ other

    with (
        manual_ops.fuse(),
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"cannot be multiplied"),
    ):
        fusible(wrong)(torch.ones(2, 3), torch.ones(2, 3))


WITHOUT_COMPILER = """
import warnings
import torch
import manual_ops
from manual_ops import functional as F

x = torch.randn(50, requires_grad=True)
with warnings.catch_warnings(record=True) as caught, manual_ops.fuse():
    warnings.simplefilter("always")
    for op in (F.silu, F.relu, F.silu):
        (fused,) = torch.autograd.grad(op(x).sum(), x)
ours = [w for w in caught if "manual_ops.fuse" in str(w.message)]
(plain,) = torch.autograd.grad(F.silu(x).sum(), x)
print(len(ours), ours[0].message, torch.equal(fused, plain))
"""


def test_without_a_compiler(tmp_path: Path) -> None:
    environment = {"CXX": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(manual_ops.__file__).parents[1],
    )
    count, message = done.stdout.split(maxsplit=1)
    assert count == "1"
    assert "formulas are not compiled" in message
    assert message.strip().endswith("True")
