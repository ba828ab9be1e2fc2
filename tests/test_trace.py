"""The trace of a model: what it records is what autograd computes, and it leaves nothing behind."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import manual_ops
from manual_ops import ops, trace
from manual_ops.testing.cases import CASES, OpCase
from manual_ops.trace import Step, formulas


class Residual(nn.Module):
    """Hand-written layers beside an addition and a view, which PyTorch differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 3, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        hidden = torch.relu(self.first(input)) + input
        return self.second(hidden.view(-1, 6))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


INPUTS, LABELS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3


def step(steps: tuple[Step, ...], op: str, layer: str = "") -> Step:
    (found,) = (s for s in steps if s.op == op and (not layer or s.layer == layer))
    return found


def test_steps_in_order(model: nn.Module) -> None:
    found = trace(model, INPUTS, LABELS)
    assert [(s.op, s.layer, s.manual) for s in found.steps] == [
        ("linear", "first", True),
        ("relu", "", True),
        ("Add", "", False),
        ("View", "", False),
        ("linear", "second", True),
        ("cross_entropy", "", True),
    ]
    assert [s.order for s in found.steps] == [6, 5, 4, 3, 2, 1]


def test_norms_and_bytes(model: nn.Module) -> None:
    found = trace(model, INPUTS, LABELS)
    hidden = model.first(INPUTS)
    hidden.retain_grad()
    loss = nn.functional.cross_entropy(model.second(hidden.relu() + INPUTS), LABELS)
    loss.backward()
    assert found.loss == pytest.approx(loss.item())
    linear = step(found.steps, "linear", "first")
    by_name = {value.name: value for value in (*linear.inputs, *linear.outputs)}
    assert list(by_name) == ["input", "weight", "bias", "output"]
    assert by_name["input"].norm == pytest.approx(INPUTS.norm().item())
    assert by_name["input"].gradient is None
    assert by_name["weight"].shape == (6, 6)
    assert by_name["weight"].gradient == pytest.approx(model.first.weight.grad.norm().item())
    assert by_name["output"].norm == pytest.approx(hidden.norm().item())
    assert by_name["output"].gradient == pytest.approx(hidden.grad.norm().item())
    assert linear.saved_bytes == 4 * 6 * 4  # the input alone: its own gradient is not asked for


def test_inputs_by_position_and_by_name(model: nn.Module) -> None:
    expected = str(trace(model, INPUTS, LABELS))
    assert str(trace(model, (INPUTS,), LABELS)) == expected
    assert str(trace(model, {"input": INPUTS}, LABELS)) == expected


def test_nothing_is_left_behind(model: nn.Module) -> None:
    apply, state = Function.__dict__["apply"], torch.get_rng_state()
    model.append = nn.Dropout()
    trace(model, INPUTS, LABELS)
    assert Function.__dict__["apply"] is apply
    assert torch.equal(torch.get_rng_state(), state)
    assert type(model.first) is nn.Linear
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_pre_hooks
    with pytest.raises(RuntimeError):
        trace(model, INPUTS[:, :2], LABELS)
    assert Function.__dict__["apply"] is apply


def test_user_function_is_a_hand_written_step() -> None:
    class Double(Function):
        @staticmethod
        def forward(ctx: object, input: Tensor) -> Tensor:
            return input * 2

        @staticmethod
        def backward(ctx: object, grad_output: Tensor) -> Tensor:
            return grad_output * 2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, input: Tensor) -> Tensor:
            return Double.apply(self.linear(input))

    found = step(trace(Model(), INPUTS, LABELS).steps, "double")
    assert found.manual
    assert found.outputs[0].norm == pytest.approx(2 * found.inputs[0].norm)
    assert found.inputs[0].gradient == pytest.approx(2 * found.outputs[0].gradient)


def test_what_pytorch_differentiates_may_save(model: nn.Module) -> None:
    """Backward frees what it saved; the bytes are counted before."""

    class Model(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return (model(input).exp() * model(input)) ** 2

    (exponential,) = (s for s in trace(Model(), INPUTS, LABELS).steps if s.op == "Exp")
    assert exponential.saved_bytes == 4 * 3 * 4


def test_loss_without_gradient(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"scalar .* got shape \[4\]"):
        trace(model, INPUTS, LABELS, lambda output, target: output.sum(1))
    with pytest.raises(ValueError, match="without a gradient"):
        trace(model, INPUTS, LABELS, lambda output, target: output.detach().sum())


def test_page(model: nn.Module, tmp_path: Path) -> None:
    found = trace(model, INPUTS, LABELS)
    found.save(tmp_path / "trace.html")
    page = (tmp_path / "trace.html").read_text()
    assert page.count("<section") == len(found.steps)
    assert not re.search(r"(src|href|url)\s*[=(]", page)  # nothing from outside
    assert "dL/dW[o, i] = sum_*" in page
    for number in re.findall(r"<td>([\d.]+)</td>", page):
        float(number)


def test_table_and_markdown(model: nn.Module) -> None:
    found = trace(model, INPUTS, LABELS)
    rows = found.markdown().splitlines()
    table = [row for row in rows if row.startswith("|")]
    assert len({row.count("|") for row in table}) == 1
    assert len(str(found).splitlines()) == len(table) + 1  # a title, a blank line, no ruler
    assert "Add (PyTorch's)" in str(found)


class OneOp(nn.Module):
    """A call of an op of ``torch.nn.functional`` as a model without parameters."""

    def __init__(self, case: OpCase) -> None:
        super().__init__()
        self.op, self.arguments = getattr(manual_ops.functional, case.op), case.sample()

    def forward(self, *tensors: Tensor) -> Tensor:
        names = [name for name, value in self.arguments.items() if isinstance(value, Tensor)]
        output = self.op(**self.arguments | dict(zip(names, tensors, strict=True)))
        return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize(
    "case", {case.op: case for case in reversed(CASES)}.values(), ids=lambda c: c.op
)
def test_every_op_is_named_and_derived(case: OpCase) -> None:
    model = OneOp(case)
    inputs = tuple(
        value.requires_grad_(name in case.differentiable)
        for name, value in model.arguments.items()
        if isinstance(value, Tensor)
    )
    steps = [
        s for s in trace(model, inputs, None, lambda output, _: output.sum()).steps if s.manual
    ]
    assert all(s.op in OPS and s.formulas for s in steps), steps
    home = model.op.__module__.rpartition(".")[2]
    assert steps[-1].op == ("linear" if home == "multi_head_attention" else home)


OPS = [name for _, name, _ in pkgutil.iter_modules(ops.__path__) if not name.startswith("_")]


@pytest.mark.parametrize("name", OPS)
def test_every_derivation_can_be_read(name: str) -> None:
    module = import_module(f"{manual_ops.__name__}.ops.{name}")
    assert formulas(module.__doc__).keys() >= {"Forward", "Backward"}
