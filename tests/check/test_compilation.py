"""The checks of torch.compile: graph breaks are named, wrong numbers found."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from manual_ops import check
from manual_ops.check import Row

NAMES = ("compile", "compile, other batch size", "compiled transforms")
TRANSFORMS = ("grad", "jvp", "vmap", "vmap(grad)")

POINT = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _rows(fn: Any, *inputs: Any, only: tuple[str, ...] = NAMES, **settings: Any) -> list[Row]:
    return list(check(fn, *inputs, only=only, **settings).rows)


def _verdicts(*args: Any, **settings: Any) -> dict[str, str]:
    return {row.name: row.verdict for row in _rows(*args, **settings)}


class _Square(Function):
    """Right, and without ``jvp``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input * input

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * grad_output * input


def _prints(input: Tensor) -> Tensor:
    print(end="")
    return input.sin()


def _branches(input: Tensor) -> Tensor:
    return input * 2 if input.sum() > 0 else input * 3


def _wrong_if(condition: Callable[[Tensor], bool], wrong: Callable[[Tensor], Tensor]) -> Any:
    """``sin``, and something else when compiled and ``condition`` holds."""

    def function(input: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        return wrong(input) if compiling and condition(input) else input.sin()

    return function


def test_right_op_passes() -> None:
    verdicts = _verdicts(nn.BatchNorm1d(4).double(), POINT)  # which updates buffers
    names = [*NAMES[:2], *(f"compiled transforms: {name}" for name in TRANSFORMS)]
    assert verdicts == dict.fromkeys(names, "pass")


@pytest.mark.parametrize(
    ("fn", "inputs"),
    [
        (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).double().eval(), (POINT,)),
        (torch.nn.functional.linear, (POINT, POINT[:2] + 1, POINT[0, :2])),
        (torch.nn.functional.cross_entropy, (POINT, torch.tensor([1, 0, 3]))),
        (torch.nn.functional.dropout, (POINT,)),
    ],
    ids=["evaluation", "one_input_alone", "two_inputs_make_a_batch", "random"],
)
def test_right_ops_pass_for_other_batch_sizes(fn: Any, inputs: tuple[Any, ...]) -> None:
    assert _verdicts(fn, *inputs, only=NAMES[:2]) == dict.fromkeys(NAMES[:2], "pass")


@pytest.mark.parametrize("fn", [_prints, _branches])
def test_graph_break_is_named_with_its_line(fn: Any) -> None:
    row, size, transforms = _rows(fn, POINT)
    assert row.failed
    assert row.detail.startswith("graph break: ")
    assert row.where.startswith("test_compilation.py:")
    assert row.where.endswith(fn.__name__)
    assert (size.verdict, transforms.verdict) == ("n/a", "n/a")


@pytest.mark.parametrize(
    "wrong",
    [lambda input: 1.01 * input.sin(), lambda input: input.sin() + 0.01 * (input - input.detach())],
    ids=["value", "gradient"],
)
def test_wrong_when_compiled(wrong: Callable[[Tensor], Tensor]) -> None:
    fn = _wrong_if(lambda input: True, wrong)
    assert _verdicts(fn, POINT, only=NAMES[:1]) == {"compile": "FAIL"}


def test_wrong_for_another_batch_size_alone() -> None:
    fn = _wrong_if(lambda input: len(input) > 3, torch.cos)
    assert _verdicts(fn, POINT, only=NAMES[:2]) == {
        "compile": "pass",
        "compile, other batch size": "FAIL",
    }


def test_wrong_under_compiled_transforms_alone() -> None:
    fn = _wrong_if(lambda input: torch._C._are_functorch_transforms_active(), torch.cos)
    verdicts = _verdicts(fn, POINT)
    assert verdicts.pop("compile") == verdicts.pop("compile, other batch size") == "pass"
    assert verdicts == {f"compiled transforms: {name}": "FAIL" for name in TRANSFORMS}


def test_function_is_told_what_torch_compile_does_not_take() -> None:
    rows = {row.name: row for row in _rows(_Square, POINT)}
    assert rows["compile"].verdict == rows["compiled transforms: grad"].verdict == "pass"
    assert rows["compiled transforms: jvp"].detail == "does not work without torch.compile either"
    mapped = rows["compiled transforms: vmap(grad)"]
    assert mapped.detail.startswith("torch.compile cannot map a Function")
    with_jvp = type("WithJvp", (_Square,), {"jvp": staticmethod(lambda ctx, tangent: tangent)})
    row, *_ = _rows(with_jvp, POINT)
    assert (row.verdict, "defines jvp" in row.detail) == ("n/a", True)


def test_no_batch_to_change() -> None:
    (row,) = _rows(torch.sin, POINT[0, 0], only=NAMES[1:2])
    assert (row.verdict, row.detail) == ("n/a", "no input has a dimension")
    (row,) = _rows(lambda input: input.view(3, 4) * 2, POINT, only=NAMES[1:2])
    assert (row.verdict, "is no batch" in row.detail) == ("n/a", True)


@pytest.fixture
def no_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch._dynamo.eval_frame.is_dynamo_supported", lambda: False)
    return


@pytest.mark.usefixtures("no_dynamo")
def test_platform_without_torch_compile() -> None:
    assert {row.verdict for row in _rows(torch.sin, POINT)} == {"n/a"}


def test_backend() -> None:
    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    assert _verdicts(torch.sin, POINT, only=NAMES[:1], backend=backend) == {"compile": "pass"}
    assert seen
