"""The library as a whole: every public op is covered, documented and like its torch twin."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import nn

import manual_ops
from manual_ops import functional
from manual_ops import nn as manual_nn
from manual_ops.check import CHECKS
from manual_ops.testing.cases import CASES, EMPTY_CASES, OpCase
from tests.bad_calls import BAD_CALLS
from tests.harness import CountOps, cases_for, on_differentiable, random_like, subject
from tests.test_nn import MODULE_CASES

OPS = {
    name: op
    for name, op in vars(functional).items()
    if inspect.isfunction(op) and not name.startswith("_")
}
each_op = pytest.mark.parametrize("name", OPS)

# torch.nn has no class for them: the coursework takes the logarithm as a layer's function, and
# nn.MultiheadAttention comes to attention by way of multi_head_attention_forward.
WITHOUT_MODULE = {"log", "scaled_dot_product_attention"}

# Fused ops, which torch has not.
WITHOUT_TWIN = {"batch_norm_relu_conv2d"}
SIGNATURE_OF = {"linear_relu": "linear", "conv2d_relu": "conv2d"}

# These twins are built in: inspect finds no signature, so it stands here as documented.
BUILT_IN_SIGNATURES = {
    "linear": "(input, weight, bias=None)",
    "softplus": "(input, beta=1, threshold=20)",
    "conv1d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
    "conv2d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
    "avg_pool2d": (
        "(input, kernel_size, stride=None, padding=0, ceil_mode=False, "
        "count_include_pad=True, divisor_override=None)"
    ),
    # A dispatcher over two overloads, whose own signature is (*args, **kwargs).
    "max_pool2d": (
        "(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
        "return_indices=False)"
    ),
    "log": "(input)",
    "gelu": "(input, approximate='none')",
    "scaled_dot_product_attention": (
        "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
        "enable_gqa=False)"
    ),
}


def test_every_op_has_cases() -> None:
    assert {case.op for case in CASES} == set(OPS)
    assert {case.op for case in EMPTY_CASES} == set(OPS)
    assert len({case.id for case in CASES + EMPTY_CASES}) == len(CASES + EMPTY_CASES)


def test_exemptions_are_few() -> None:
    exemptions = {check for case in CASES for check in case.exempt}
    assert exemptions == {"autocast", "channels_last", "empty batch", "saved bytes"}
    assert exemptions <= CHECKS.keys()


def test_every_op_that_can_be_misused_has_bad_calls() -> None:
    anything_goes = {"relu", "sigmoid", "tanh", "log"}  # any tensor will do
    assert {call.op for call in BAD_CALLS} | anything_goes == set(OPS)


@each_op
def test_docstring(name: str) -> None:
    documentation = inspect.getdoc(OPS[name])
    assert documentation is not None
    for section in ("Args:", "Returns:", "Raises:"):
        assert f"\n{section}\n" in documentation, section
    for parameter in inspect.signature(OPS[name]).parameters:
        if not parameter.startswith("_"):
            assert f"    {parameter}: " in documentation, parameter


@each_op
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_raised_errors_are_documented(name: str) -> None:
    documented = (inspect.getdoc(OPS[name]) or "").partition("\nRaises:\n")[2]
    case = next(case for case in CASES if case.op == name)
    no_tensor = case.sample() | {next(iter(case.arguments)): [1.0]}
    for arguments in (no_tensor, *(call.arguments for call in BAD_CALLS if call.op == name)):
        with pytest.raises(Exception) as raised:
            OPS[name](**arguments)
        if raised.type is not AttributeError:  # torch's own code asks a list for its size
            assert raised.type.__name__ in documented


@each_op
def test_derivation_is_documented(name: str) -> None:
    derivation = sys.modules[OPS[name].__module__].__doc__
    assert derivation is not None
    for part in ("Forward:", "Backward:", "Tangent:", "Source:"):
        assert part in derivation, part


def plain_signature(function: Callable[..., Any]) -> str:
    """Names, order and defaults, without annotations."""
    parameters = inspect.signature(function).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize("name", [name for name in OPS if name not in WITHOUT_TWIN])
def test_signature_is_torchs(name: str) -> None:
    like = SIGNATURE_OF.get(name, name)
    if like in BUILT_IN_SIGNATURES:
        expected = BUILT_IN_SIGNATURES[like]
    else:
        expected = plain_signature(getattr(torch_functional, name))
    assert plain_signature(OPS[name]) == expected


def test_every_op_has_a_module() -> None:
    """Each op is called by name in the forward of some class of ``manual_ops.nn``."""
    files = Path(inspect.getfile(manual_nn)).parent.glob("*.py")
    called = {
        node.func.attr
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert set(OPS) - WITHOUT_MODULE <= called


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_public_function_is_overridable(op: str) -> None:
    assert hasattr(getattr(functional, op), "__wrapped__")


@pytest.mark.parametrize("name", manual_nn.__all__)
def test_module_overrides_forward_only(name: str) -> None:
    ours, theirs = getattr(manual_nn, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    added = set().union(
        *(vars(c) for c in ours.__mro__ if c.__module__.startswith(manual_nn.__name__))
    )
    assert added - {"__module__", "__doc__", "__qualname__"} <= {
        "forward",
        "convert_sync_batchnorm",
        "__annotations__",
        "__firstlineno__",
        "__static_attributes__",
        *("__abstractmethods__", "_abc_impl", "_asked_for"),  # of the metaclass
    }
    assert "forward" in added
    assert inspect.getdoc(ours) != inspect.getdoc(theirs)


def test_every_module_has_cases() -> None:
    assert {case.module for case in MODULE_CASES} == set(manual_nn.__all__)


@cases_for()
def test_backward_calls_no_backward_kernel(case: OpCase) -> None:
    """First, second order and forward mode run on forward primitives alone."""
    function, tensors = on_differentiable(case, subject(case), case.sample())
    with CountOps() as ops:
        output = function(*tensors)
        found = torch.autograd.grad(
            output, tensors, random_like(output, 1), create_graph=True, retain_graph=True
        )
        total = sum(gradient.square().sum() for gradient in found)
        torch.autograd.grad(output, tensors, random_like(output, 1))
        torch.func.jvp(function, tensors, tensors)
    assert total.isfinite()
    assert ops.calls
    assert not [name for name in ops.calls if "backward" in name]


def test_no_autograd_call_inside_an_op() -> None:
    sources = list((Path(manual_ops.__file__).parent / "ops").glob("*.py"))
    assert sources
    for path in sources:
        tree = ast.parse(path.read_text())
        dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for name in dotted:
            assert not name.startswith(("torch.func.", "torch.nn.grad.")), f"{path.name}: {name}"
            assert not name.endswith(("autograd.grad", ".backward")), f"{path.name}: {name}"


IMPORT_WITH_TORCH_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {refused}:
            raise ImportError("refused: " + name)

import torch
before = set(sys.modules)
sys.meta_path.insert(0, Refuse())
import manual_ops
import manual_ops.functional
import manual_ops.nn
x = torch.randn(2, 3, requires_grad=True)
manual_ops.functional.relu(x).sum().backward()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"torch", "manual_ops"}))
"""


def test_library_needs_torch_alone() -> None:
    """Imports and runs where everything that only train.py needs is refused."""
    refused = (
        "torchvision",
        "tensorboard",
        "tyro",
        "tqdm",
        "sklearn",
        "matplotlib",
        "torchinfo",
        "yaml",
        "models",
        "training",
        "train",
        "tests",
    )
    script = IMPORT_WITH_TORCH_ALONE.replace("{refused}", repr(refused))
    root = Path(manual_ops.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_import_graph_points_one_way() -> None:
    package = Path(manual_ops.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                assert module.partition(".")[0] not in {"models", "training", "train"}, path
    for path in (package / "ops").glob("*.py"):
        text = path.read_text()
        assert "from .. import" not in text, f"{path.name}: ops stand below functional and nn"
        assert "from ..functional" not in text, path.name
        assert "from ..nn" not in text, path.name
