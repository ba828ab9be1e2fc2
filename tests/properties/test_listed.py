"""Listed misuse on every case: torch.nn's outcome, or the right gradient where torch.nn raises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from manual_ops import functional
from manual_ops.testing.cases import CASES, OpCase
from manual_ops.testing.compositions import torch_op
from tests.harness import cases_for, first, on_differentiable, random_like, subject
from tests.properties.outcomes import close

INPLACE = ("relu", "relu6", "leaky_relu", "elu", "silu", "hardswish", "hardsigmoid", "dropout")


def outcome(call: Callable[[], Any]) -> tuple[type[Exception] | None, Any]:
    """Return the type of what a call raises, or what it returns."""
    try:
        return None, call()
    except (RuntimeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        return type(error), str(error)


def gradients(output: Tensor, tensors: tuple[Tensor, ...], **options: bool) -> list[Tensor]:
    return [*torch.autograd.grad(output, tensors, random_like(output, 1), **options)]


def results(case: OpCase, op: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """Output and gradients."""
    function, tensors = on_differentiable(case, op, arguments)
    output = function(*tensors)
    return [output.detach(), *gradients(output, tensors)]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@cases_for()
def test_backward_twice(case: OpCase) -> None:
    """The second time raises torch.nn's error, or, where we save nothing, is right as well."""
    function, tensors = on_differentiable(case, subject(case), case.sample())
    output = function(*tensors)
    expected = gradients(output, tensors)
    error, found = outcome(lambda: gradients(output, tensors))
    if error is None:
        assert_all_close(found, expected)
    else:
        assert error is RuntimeError
        assert "backward through the graph a second time" in found


@cases_for()
def test_backward_twice_on_a_retained_graph(case: OpCase) -> None:
    function, tensors = on_differentiable(case, subject(case), case.sample())
    output = function(*tensors)
    expected = gradients(output, tensors, retain_graph=True)
    for retain_graph in (True, False):
        for ours, theirs in zip(
            gradients(output, tensors, retain_graph=retain_graph), expected, strict=True
        ):
            assert torch.equal(ours, theirs)


@cases_for()
def test_change_of_a_tensor_before_backward(case: OpCase) -> None:
    """Each argument and the output in turn: never a wrong gradient without a word."""
    arguments = case.sample()
    changeable = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    changeable = [name for name in changeable if name not in case.buffers]
    for name in (*changeable, "output"):
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        function, tensors = on_differentiable(case, subject(case), copies)
        expected = gradients(function(*tensors), tensors)
        output = function(*tensors)
        made = copies | dict(zip(case.differentiable, tensors, strict=True)) | {"output": output}
        with torch.no_grad():
            changed = made[name]
            changed.logical_not_() if changed.dtype == torch.bool else changed.add_(1)
        error, found = outcome(lambda output=output, tensors=tensors: gradients(output, tensors))
        if error is None:  # it was not saved
            assert_all_close(found, expected)
        else:
            assert error is RuntimeError
            assert "inplace" in found


@cases_for()
def test_each_tensor_on_another_device(case: OpCase) -> None:
    """The meta device beside the CPU: torch.nn's type of error, or its output's device."""
    arguments = case.sample()
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    for name in names:
        mixed = arguments | {name: arguments[name].to("meta")}
        (error, found), (expected, output) = (
            outcome(lambda op=op, mixed=mixed: first(op(**mixed)))
            for op in (subject(case), torch_op(case.op))
        )
        if error is None and expected is None:
            assert found.device == output.device, name
            assert found.shape == output.shape, name
        else:
            assert error in (RuntimeError, NotImplementedError), (name, found, output)


@cases_for()
def test_all_tensors_on_the_meta_device(case: OpCase) -> None:
    """No device mixed: shapes and dtypes without numbers, forward and backward."""
    function, tensors = on_differentiable(case, subject(case), case.sample(device="meta"))
    output = function(*tensors)
    on_cpu, same = on_differentiable(case, case.reference, case.sample())
    assert output.device.type == "meta"
    assert output.shape == on_cpu(*same).shape
    for gradient, tensor in zip(
        torch.autograd.grad(output, tensors, torch.ones_like(output)), tensors, strict=True
    ):
        assert gradient.shape == tensor.shape
        assert gradient.device.type == "meta"


def expanded(tensor: Tensor) -> Tensor:
    """Its first slice, as often as there are slices."""
    return tensor[:1].expand_as(tensor) if tensor.dim() else tensor


def sliding(tensor: Tensor) -> Tensor:
    """Windows over its storage that overlap: every stride is 1."""
    flat = tensor.clone().flatten()
    needed = sum(size - 1 for size in tensor.shape) + 1
    return flat[:needed].as_strided(tensor.shape, [1] * tensor.dim())


@cases_for()
@pytest.mark.parametrize("overlap", [expanded, sliding])
def test_overlapping_strides(case: OpCase, overlap: Callable[[Tensor], Tensor]) -> None:
    arguments = case.sample()
    for name in case.differentiable:
        arguments[name] = overlap(arguments[name])
    ours = results(case, subject(case), arguments)
    error, theirs = outcome(lambda: results(case, case.reference, arguments))
    if error is None:
        assert_all_close(ours, theirs)
    else:
        assert theirs == "grad_input must be contiguous"  # in the backward of nll_loss


@pytest.mark.parametrize("op", INPLACE)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_in_place_of_expanded_memory_is_refused(op: str, grad: bool) -> None:
    for f in (functional, torch_functional):
        x = torch.randn(1, 3, requires_grad=grad).clone().expand(4, 3)
        with pytest.raises(RuntimeError, match="single memory location"):
            getattr(f, op)(x, inplace=True)


# Probabilities are neither huge nor, but for rounding of what is left to 1, tiny.
@cases_for([case for case in CASES if case.op != "binary_cross_entropy"])
@pytest.mark.parametrize("factor", [1e18, 1e-18], ids=str)
def test_huge_and_tiny_values(case: OpCase, factor: float) -> None:
    """In float64, where nothing overflows: as torch.nn has it, relative to the largest."""
    arguments = case.sample()
    for name in case.differentiable:
        if name == "input" or "loss" not in case.op:
            arguments[name] = arguments[name] * factor
    ours, theirs = (results(case, op, arguments) for op in (subject(case), case.reference))
    for name, found, expected in zip(("output", *case.differentiable), ours, theirs, strict=True):
        if factor > 1 and case.op == "scaled_dot_product_attention" and name in ("query", "key"):
            # All weight is on one key: products of value and key cancel but for their rounding.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 * factor**2)
        else:
            assert close(found, expected), (name, found, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integers_cannot_require_grad(dtype: torch.dtype) -> None:
    """Before any op sees them: targets of class indices have no gradient to ask for."""
    with pytest.raises(RuntimeError, match="floating point"):
        torch.zeros(3, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("op", ["nll_loss", "cross_entropy"])
@pytest.mark.parametrize("label", [255, 10, -1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_label_out_of_range(op: str, label: int, dtype: torch.dtype, reduction: str) -> None:
    """Of ten classes; torch.nn fails to print some labels of uint8."""
    target = torch.tensor([3, label % 256 if dtype == torch.uint8 else label]).to(dtype)
    x = torch.randn(2, 10, requires_grad=True)
    with pytest.raises(IndexError, match=r"(?s)Target.*out of bounds") as caught:
        getattr(functional, op)(x, target, reduction=reduction)
    assert "[0, C)" in str(caught.value)


def test_every_op_is_listed() -> None:
    assert {case.op for case in CASES} >= set(INPLACE)
