"""What else of torch works with its own layers works with ours: subclasses, tracing, devices."""

import functools
import io
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import manual_ops
from manual_ops import functional as F
from manual_ops import nn as manual_nn
from manual_ops.testing.cases import CASES, OpCase
from tests.harness import cases_for, first, on_differentiable, subject
from tests.test_nn import MODULE_CASES, ModuleCase

FIRST_CASES = {case.module: case for case in reversed(MODULE_CASES)}
each_module = pytest.mark.parametrize("case", FIRST_CASES.values(), ids=FIRST_CASES)


class Subclass(Tensor):
    """As libraries make them, to carry what a tensor means."""


def first_output(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@each_module
def test_tensor_subclass(case: ModuleCase) -> None:
    """The output is of the subclass too, and can be changed in place."""
    inputs = [x.as_subclass(Subclass) for x in case.sample()]
    output = first_output(case.build(manual_nn)(*inputs))
    assert type(output) is Subclass
    if output.requires_grad:
        output += 1
        output.sum().backward()


class Recorder(Tensor):
    """Notes by which functions it is reached, and leaves them to torch."""

    reached: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.reached.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


# Of indices torch knows by another name; nothing is done in a dropout that keeps all.
LEFT_TO_TORCH = ("max_pool2d-indices", "dropout-keep_all", "dropout-eval")
NAMES = {
    op: getattr(torch_functional, op, getattr(torch, op, None))
    for op in {case.op for case in CASES}
}


@cases_for([case for case in CASES if NAMES[case.op] and case.id not in LEFT_TO_TORCH])
def test_a_subclass_is_reached_by_the_name_of_torchs_function(case: OpCase) -> None:
    """What it then leaves to torch is differentiated by the hand-written backward all the same."""
    function, tensors = on_differentiable(case, subject(case), case.sample())
    torch.manual_seed(0)
    expected = first(function(*tensors))
    Recorder.reached.clear()
    torch.manual_seed(0)
    found = first(function(*(tensor.as_subclass(Recorder) for tensor in tensors)))
    reached = [func for func in Recorder.reached if getattr(func, "__name__", "") == case.op]
    assert reached[0] in (NAMES[case.op], getattr(torch, case.op, None))
    assert type(found) is Recorder
    found = found.as_subclass(Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert expected.grad_fn.name() in names_of_graph(found)


def names_of_graph(output: Tensor) -> set[str]:
    names, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following]
    return names


def quantised(values: Tensor) -> Tensor:
    """Return a weight that is no array of floats: it knows what a linear layer is, nothing else."""
    integers = values.round().to(torch.int8)

    class Weight(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch_functional.linear:
                input, _weight, bias = args
                return func(input, integers.to(input.dtype), bias)
            return super().__torch_function__(func, types, args, kwargs or {})

    return torch.empty(values.shape, device="meta").as_subclass(Weight)


def test_a_weight_that_knows_linear_layers() -> None:
    weight, x = torch.randn(4, 3) * 9, torch.randn(2, 3, requires_grad=True)
    found = F.linear(x, quantised(weight), None)
    torch.testing.assert_close(found, x @ weight.round().mT)
    assert found.grad_fn.name() == "_LinearBackward"


def test_a_weight_that_knows_linear_layers_alone_in_a_fused_op() -> None:
    weight, x = torch.randn(4, 3) * 9, torch.randn(2, 3, requires_grad=True)
    found = F.linear_relu(x, quantised(weight), None)
    torch.testing.assert_close(found, (x @ weight.round().mT).relu())
    assert {"reluBackward", "_LinearBackward"} <= names_of_graph(found)


def fused_models() -> list[tuple[nn.Module, Tensor]]:
    """Models of one fused op each, and an input."""
    convolution = nn.Conv2d(2, 4, 3, padding=1)
    image = torch.randn(2, 2, 5, 5)
    models = [
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4)),
        (nn.Sequential(convolution, nn.ReLU()), image),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), convolution), image),
    ]
    return [(manual_ops.convert(model, fuse=True)[0], input) for model, input in models]


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's linearize
@pytest.mark.parametrize(("model", "input"), fused_models(), ids=["linear", "conv", "norm"])
def test_fused_ops_write_to_nothing_that_a_mode_has_seen(model: nn.Module, input: Tensor) -> None:
    """Selective checkpoints keep results of ATen's operations."""
    aten = torch.ops.aten
    saved = [aten.addmm.default, aten.convolution.default, aten.native_batch_norm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, saved)
    expected = torch.autograd.grad(model(input).square().sum(), tuple(model.parameters()))
    output = checkpoint(model, input, use_reentrant=False, context_fn=contexts)
    found = torch.autograd.grad(output.square().sum(), tuple(model.parameters()))
    torch.testing.assert_close(found, expected)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        value, jvp = torch.func.linearize(model, input)
        torch.testing.assert_close(jvp(input), torch.func.jvp(model, (input,), (input,))[1])
        torch.testing.assert_close(value, model(input))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_jit_traces_attention() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 4, 8)
    torch.testing.assert_close(torch.jit.trace(attend, x)(x), attend(x))


def test_functions_recorded_by_fx_are_the_hand_written_ones() -> None:
    """Also in layers, where none of them asks what it is given, as a batch norm does."""
    layers = [manual_nn.Conv2d(1, 2, 3), manual_nn.ReLU(), manual_nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, manual_nn.Linear(18, 4), manual_nn.LayerNorm(4))
    traced, x = torch.fx.symbolic_trace(model), torch.randn(2, 1, 8, 8)
    assert {F.conv2d, F.relu, F.max_pool2d, F.linear, F.layer_norm} <= {
        node.target for node in traced.graph.nodes
    }
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    assert traced(x).grad_fn.name() == model(x).grad_fn.name()


def test_rectifier_in_place_behind_a_layer() -> None:
    x = torch.randn(2, 4)
    layers = manual_nn.Sequential(manual_nn.Linear(4, 4), manual_nn.ReLU(inplace=True))
    found = layers(x.as_subclass(Subclass))
    torch.testing.assert_close(found.as_subclass(Tensor), layers(x), rtol=0, atol=0)


@each_module
def test_export_of_any_batch_size(case: ModuleCase) -> None:
    inputs = tuple(torch.cat([x, x]) for x in case.sample())
    dims = tuple({0: torch.export.Dim(f"from_{len(x)}", min=2)} for x in inputs)
    exported = torch.export.export(case.build(manual_nn), inputs, dynamic_shapes=dims)
    larger = tuple(torch.cat([x, x]) for x in inputs)
    if case.module != "Dropout":
        found = first_output(exported.module()(*larger))
        torch.testing.assert_close(found, first_output(case.build(nn)(*larger)))


@each_module
@pytest.mark.parametrize("training", [False, True])
def test_export_records_what_it_records_of_torchs_layer(case: ModuleCase, training: bool) -> None:
    """So what quantises, or translates, by the names of torch's operations finds them."""
    ours, theirs = (
        torch.export.export(case.build(namespace).train(training), case.sample())
        for namespace in (manual_nn, nn)
    )
    ours, theirs = ([str(node.target) for node in e.graph.nodes] for e in (ours, theirs))
    if case.module == "ReLU6":  # torch.nn's is a hardtanh
        theirs = [target.replace("hardtanh", "relu6") for target in theirs]
    assert ours == theirs


@each_module
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_jit_trace_can_be_saved(case: ModuleCase) -> None:
    inputs, module = case.sample(), case.build(manual_nn)
    traced = torch.jit.trace(module, inputs, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    if case.module not in ("BatchNorm1d", "BatchNorm2d", "Dropout"):  # its state has moved
        found = first_output(torch.jit.load(file)(*inputs))
        torch.testing.assert_close(found, first_output(module(*inputs)))


@each_module
def test_all_in_inference_mode(case: ModuleCase) -> None:
    def requires_grad(namespace: Any) -> bool:
        with torch.inference_mode():
            module, inputs = case.build(namespace).eval(), case.sample()
        return first_output(module(*inputs)).requires_grad

    assert requires_grad(manual_nn) == requires_grad(nn)


def test_attention_is_compiled_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    compiled = torch.compile(F.scaled_dot_product_attention, backend="eager", fullgraph=True)
    for batch in range(2, 14):
        query = torch.randn(batch, 2, 5, 4)
        found, expected = (
            f(query, query, query) for f in (compiled, F.scaled_dot_product_attention)
        )
        torch.testing.assert_close(found, expected)


def test_export_of_pooling_of_any_image() -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(x, 3, 2, 1)
            return F.adaptive_avg_pool2d(x, x.shape[-1])

    size = torch.export.Dim("size", min=8)
    exported = torch.export.export(
        Pools(), (torch.randn(1, 2, 32, 32),), dynamic_shapes=({2: size, 3: size},)
    )
    image = torch.randn(1, 2, 300, 300)
    torch.testing.assert_close(exported.module()(image), Pools()(image))


@pytest.mark.parametrize("padding", [0, 1])
def test_max_pool_under_another_default_device(padding: int) -> None:
    def gradient() -> Tensor:
        x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        with torch.device("meta"):
            F.max_pool2d(x, 3, 2, padding).square().sum().backward()
        return x.grad

    assert gradient().abs().sum() > 0


@pytest.mark.parametrize("layer", [manual_nn.LayerNorm(6), manual_nn.Tanh(), manual_nn.Softmax(1)])
def test_traced_backward_writes_into_nothing(layer: Callable[[Tensor], Tensor]) -> None:
    """``make_fx`` records a graph that can be differentiated again, which ``out=`` cannot."""

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(layer(x).sin().sum(), x)[0]

    x = torch.randn(2, 6, requires_grad=True)
    graph = make_fx(gradient)(x)
    assert not [node for node in graph.graph.nodes if "out" in str(node.target).split(".")]
    torch.testing.assert_close(graph(x), gradient(x))


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (lambda f, x, w: f.conv2d(x, w), [(2, 8, 6, 6), (8, 8, 1, 1)]),
        (lambda f, x, w: f.conv2d(x, w, padding=1), [(4, 128, 4, 4), (128, 128, 3, 3)]),
        (lambda f, x, w: f.conv1d(x, w, groups=2), [(2, 8, 12), (8, 4, 3)]),
        (lambda f, *qkv: f.scaled_dot_product_attention(*qkv), [(2, 4, 16, 8)] * 3),
        (lambda f, x: f.avg_pool2d(x, 3, 2), [(2, 4, 9, 9)]),
        (lambda f, x: f.max_pool2d(x, 3, 2, 1), [(2, 4, 9, 9)]),
    ],
    ids=["conv2d_1x1", "conv2d_3x3", "conv1d", "attention", "avg_pool2d", "max_pool2d"],
)
def test_backward_inside_autocast_has_the_precision_of_the_forward_outside(
    call: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    arguments = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def gradients(f: Any) -> tuple[Tensor, ...]:
        output = call(f, *arguments)
        g = torch.ones_like(output) / 3
        with torch.autocast("cpu", torch.bfloat16):
            return torch.autograd.grad(output, arguments, g)

    torch.testing.assert_close(gradients(F), gradients(torch_functional))


@pytest.mark.parametrize("weighted", [False, True])
def test_mse_loss_has_the_dtype_of_torchs_under_autocast(weighted: bool) -> None:
    half = torch.randn(3, dtype=torch.bfloat16)
    weight = half.abs() if weighted else None
    with torch.autocast("cpu", torch.bfloat16):
        losses = [f.mse_loss(half, 2 * half, weight=weight) for f in (F, torch_functional)]
    torch.testing.assert_close(*losses)
