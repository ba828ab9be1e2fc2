"""Converting keeps everything of a model but the class of its layers, and can be undone."""

import copy
import io
import logging
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm
from torch.utils.checkpoint import checkpoint

from manual_ops import convert, revert
from manual_ops import nn as manual_nn
from manual_ops.convert import Layer, Report
from tests.harness import CountOps
from tests.test_override import Recorder

TWINS = {
    getattr(nn, name): getattr(manual_nn, name) for name in manual_nn.__all__ if hasattr(nn, name)
}


class Scaled(nn.Module):
    """User code around a layer, with a parameter of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        Scaled(nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Tanh())),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, 3),
    ).to(dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def train(model: nn.Module, steps: int = 3) -> list[Tensor]:
    """A few steps of SGD; returns every loss, parameter and buffer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = model(images()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses + list(model.state_dict().values())


def backward_kernels(model: nn.Module) -> list[str]:
    with CountOps() as ops:
        model(images()).square().mean().backward()
    assert ops.calls
    return [name for name in ops.calls if "backward" in name]


# ---- what is changed, and that nothing else is


def test_every_hand_written_module_is_converted() -> None:
    """The table follows ``manual_ops.nn.__all__``: a new module needs no edit."""
    assert TWINS
    for twin, manual in TWINS.items():
        layer = twin.__new__(twin)
        nn.Module.__init__(layer)
        assert type(convert(layer, inplace=True).model) is manual
        assert type(revert(layer, inplace=True).model) is twin


def test_learns_the_same_by_hand() -> None:
    ours = convert(network()).model
    torch.testing.assert_close(train(ours), train(network()), rtol=1e-10, atol=1e-12)
    assert not backward_kernels(ours)
    assert backward_kernels(network())


def test_default_leaves_the_model_alone() -> None:
    model = network()
    before, expected = dict(vars(model)), kinds(model)
    ours, _ = convert(model)
    assert ours is not model
    assert kinds(model) == expected
    assert vars(model) == before
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in model.parameters()}


def test_inplace_keeps_the_tensors_themselves() -> None:
    """So an optimizer built before goes on working."""
    model = network()
    tensors = [*model.parameters(), *model.buffers()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ours, _ = convert(model, inplace=True)
    assert ours is model
    assert all(a is b for a, b in zip(tensors, [*ours.parameters(), *ours.buffers()], strict=True))
    before = ours[0].weight.detach().clone()
    ours(images()).sum().backward()
    optimizer.step()
    assert not torch.equal(ours[0].weight, before)


@pytest.mark.parametrize("inplace", [True, False])
def test_keeps_attributes_state_and_repr(inplace: bool) -> None:
    model = network()
    model(images())  # num_batches_tracked is 1
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[7].note = "user's own"
    expected = copy.deepcopy(model)
    ours, _ = convert(model, inplace=inplace)
    assert repr(ours) == repr(expected)
    torch.testing.assert_close(ours.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert ours[1].num_batches_tracked == 1
    assert [m.training for m in ours.modules()] == [m.training for m in expected.modules()]
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in expected.parameters()
    ]
    assert ours[7].note == "user's own"
    for module, twin in zip(ours.modules(), expected.modules(), strict=True):
        assert vars(module).keys() == vars(twin).keys()
        assert isinstance(module, type(twin))


def test_loads_checkpoints_of_the_original_and_back() -> None:
    model = network()
    ours, _ = convert(model)
    train(ours)
    model.load_state_dict(ours.state_dict())
    torch.testing.assert_close(model.eval()(images()), ours.eval()(images()))


@pytest.mark.parametrize("inplace", [True, False])
def test_hooks_stay(inplace: bool) -> None:
    model, calls = network(), []
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[7].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[7].register_state_dict_post_hook(lambda *_: calls.append("state"))
    model[7].weight.register_hook(lambda _: calls.append("gradient"))
    ours, _ = convert(model, inplace=inplace)
    ours(images()).sum().backward()
    ours.state_dict()
    assert sorted(calls) == sorted(
        ["after", "backward", "before", "state", *(["gradient"] if inplace else [])]
    )  # copy.deepcopy leaves hooks on a tensor with that tensor


def test_shared_layers_and_tied_weights_stay_shared() -> None:
    layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = layer.weight
    model = nn.Sequential(layer, nn.ReLU(), layer, tied)
    for inplace in (False, True):
        ours, report = convert(model, inplace=inplace)
        assert ours[0] is ours[2]
        assert ours[3].weight is ours[0].weight
        assert [entry.name for entry in report.converted] == ["0", "1", "3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_device_stay(dtype: torch.dtype, device: str) -> None:
    for order in ("convert first", "convert last"):
        model: nn.Module = network(torch.float32)
        if order == "convert last":
            model = model.to(device, dtype)
        model, _ = convert(model)
        model = model.to(device, dtype)
        output = model(images(dtype).to(device))
        assert (output.dtype, output.device.type) == (dtype, device)
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    assert convert(model).model(torch.empty(4, 3, device="meta")).shape == (4, 2)


def test_twice_is_once() -> None:
    once, first = convert(network())
    expected = kinds(once)
    twice, second = convert(once, inplace=True)
    assert kinds(twice) == expected
    assert not second.converted
    assert [entry.name for entry in second.already] == [entry.name for entry in first.converted]
    assert first.share == second.share == 1


def test_revert_undoes() -> None:
    model = network()
    expected = kinds(model)
    ours, forth = convert(model)
    theirs, back = revert(ours)
    assert kinds(theirs) == expected
    assert kinds(ours) != expected
    assert [entry.name for entry in back.converted] == [entry.name for entry in forth.converted]
    torch.testing.assert_close(train(theirs), train(network()), rtol=0, atol=0)
    assert not revert(theirs, inplace=True).report.converted


def test_a_single_layer_and_a_loss() -> None:
    layer, report = convert(nn.Linear(2, 3))
    assert type(layer) is manual_nn.Linear
    assert report.converted[0].name == "(model)"
    assert type(convert(nn.CrossEntropyLoss()).model) is manual_nn.CrossEntropyLoss


def test_a_model_can_be_collected_afterwards() -> None:
    model = network()
    convert(model, inplace=True)
    gone = weakref.ref(model)
    del model
    assert gone() is None


# ---- what is left alone, and that it is said


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Renamed(manual_nn.Linear):
    pass


def replaced_forward() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: Doubled(3, 3), "subclass of torch.nn.Linear"),
    "subclass of a hand-written layer": (
        lambda: Renamed(3, 3),
        "subclass of manual_ops.nn.Linear",
    ),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "parametrised: weight"),
    "replaced forward": (replaced_forward, "its forward was replaced on the instance"),
    "lazy": (lambda: nn.LazyLinear(3), "lazy: convert it after the first forward"),
    "unknown": (lambda: nn.GRUCell(3, 3), "no hand-written version"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone_and_reported(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = LEFT[case]
    model = nn.Sequential(build(), nn.ReLU())
    kind = type(model[0])
    with caplog.at_level(logging.WARNING, "manual_ops"):
        _, report = convert(model, inplace=True)
    assert type(model[0]) is kind
    assert type(model[1]) is manual_nn.ReLU
    (left,) = report.left
    assert (left.name, left.kind) == ("0", kind.__name__)
    assert left.note.startswith(reason)
    assert report.share == 0.5
    assert reason in caplog.text


@pytest.mark.parametrize("case", ["parametrised", "replaced forward"])
def test_revert_leaves_alone_and_reports(case: str) -> None:
    model = convert(nn.Sequential(nn.Linear(3, 3))).model
    if case == "parametrised":
        parametrizations.weight_norm(model[0])
    else:
        model[0].forward = lambda x: x
    kind = type(model[0])
    _, report = revert(model, inplace=True)
    assert type(model[0]) is kind
    assert [entry.name for entry in report.left] == ["0"]


def test_containers_and_data_movement_are_no_layers() -> None:
    model = nn.Sequential(nn.Identity(), nn.ModuleList([nn.ZeroPad2d(1)]), nn.Flatten())
    report = convert(model, dry_run=True).report
    assert report == Report()
    assert report.share == 1


def test_parameters_in_user_code_are_reported() -> None:
    (other,) = convert(network(), dry_run=True).report.other
    assert (other.name, other.kind) == ("4", "Scaled")


def test_what_a_hand_written_layer_holds_is_its_own() -> None:
    """Attention runs its output projection by itself; swapping that would change nothing."""
    model, report = convert(nn.Sequential(nn.MultiheadAttention(4, 2)))
    assert type(model[0]) is TWINS[nn.MultiheadAttention]
    assert type(model[0].out_proj) is type(nn.MultiheadAttention(4, 2).out_proj)
    assert not report.left
    assert [entry.name for entry in report.converted] == ["0"]
    assert [entry.name for entry in convert(model).report.already] == ["0"]


def test_layers_of_layers_are_converted_from_within() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    ours, report = convert(model, verify=True, inputs=x)
    assert report.share == 1
    assert [entry.name for entry in report.converted] == [
        *("self_attn", "linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"),
        "activation",
    ]
    assert report.differences is not None
    assert report.differences["gradients"].relative < 1e-12
    with torch.no_grad():  # in evaluation torch.nn runs a fused kernel on the weights
        torch.testing.assert_close(ours.eval()(x), model.eval()(x))


def test_converted_first_then_parametrised_is_by_hand() -> None:
    model = convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double(), nn.Sigmoid())).model
    parametrizations.weight_norm(model[1])
    assert not [k for k in backward_kernels(model) if "weight_norm" not in k]
    parametrize.remove_parametrizations(model[1], "weight")
    assert type(model[1]) is manual_nn.Linear


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_by_hook_is_converted() -> None:
    model = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, 3).double()), nn.Sigmoid())
    convert(model, inplace=True)  # its weight is no leaf and cannot be deep-copied
    assert type(model[1]) is manual_nn.Linear
    assert not [k for k in backward_kernels(model) if "weight_norm" not in k]


def test_lazy_layer_after_its_first_forward() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.randn(2, 4))
    assert type(convert(model).model[0]) is manual_nn.Linear


# ---- reports


def test_dry_run_changes_nothing() -> None:
    model = network()
    expected = kinds(model)
    same, plan = convert(model, dry_run=True)
    assert same is model
    assert kinds(model) == expected
    _, done = convert(model, inplace=True)
    assert plan == done
    names = ["0", "1", "2", "3", "4.inner.0", "4.inner.1", "6", "7"]
    assert [entry.name for entry in plan.converted] == names
    assert plan.converted[0] == Layer("0", "Conv2d", "manual_ops.nn.Conv2d")
    assert revert(model, dry_run=True).report.converted
    assert type(model[7]) is manual_nn.Linear


def test_report_prints_as_lines() -> None:
    model = nn.Sequential(
        *(nn.Linear(2, 2) for _ in range(2)),
        *(nn.GRUCell(2, 2) for _ in range(4)),
        Scaled(nn.ReLU()),
    )
    assert str(convert(model, inplace=True).report).splitlines() == [
        "3 of 7 layers converted (42.9%), 0 of them before",
        "     2 Linear",
        "     1 ReLU",
        "left alone: GRUCell (no hand-written version): 2, 3, 4 and 1 more",
        "code of its own: Scaled (parameters held by tests.test_convert.Scaled): 6",
    ]
    assert str(revert(model).report).splitlines()[0] == (
        "3 of 3 layers reverted (100.0%), 0 of them before"
    )


def test_verify_reports_the_differences() -> None:
    model = network()
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = images().requires_grad_()
    _, report = convert(model, verify=True, inputs=x)
    assert report.differences is not None
    assert report.differences.keys() == {"outputs", "gradients", "buffers"}
    for difference in report.differences.values():
        assert difference.relative < 1e-12
    # Only copies were run.
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert "largest difference of gradients: " in str(report)


def test_verify_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 1.01

    linear = manual_nn.Linear.forward
    monkeypatch.setattr(manual_nn.Linear, "forward", lambda self, x: linear(self, Off.apply(x)))
    report = convert(network(), verify=True, dry_run=True, inputs=images()).report
    assert report.differences is not None
    assert report.differences["outputs"].relative < 1e-12
    assert report.differences["gradients"].relative == pytest.approx(0.01, rel=0.01)
    assert report.differences["gradients"].where != "7.weight"


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param((torch.randn(5, 2, 4), torch.randn(5, 2, 4)), id="positional"),
        pytest.param({"target": torch.randn(5, 2, 4), "input": torch.randn(5, 2, 4)}, id="keyword"),
    ],
)
def test_verify_with_several_inputs(inputs: Any) -> None:
    report = convert(nn.MSELoss(), verify=True, inputs=inputs).report
    assert report.differences is not None
    assert report.differences["gradients"].where.startswith("input")
    assert report.differences["gradients"].relative < 1e-6


def test_verify_of_sparse_gradients() -> None:
    model = nn.Embedding(4, 3, sparse=True)
    report = convert(model, verify=True, inputs=torch.tensor([1, 1, 3])).report
    assert report.differences is not None
    assert report.differences["gradients"].absolute == 0


def test_verify_needs_inputs() -> None:
    with pytest.raises(ValueError, match="verify=True and inputs of type NoneType"):
        convert(network(), verify=True)
    with pytest.raises(ValueError, match="verify=False"):
        convert(network(), inputs=images())


@pytest.mark.parametrize("function", [convert, revert])
def test_what_is_no_module_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got list"):
        function([nn.Linear(2, 2)])


# ---- converted models among the rest of PyTorch


def test_deepcopy_and_pickle(tmp_path: Path) -> None:
    ours = convert(network()).model
    expected = train(copy.deepcopy(ours))
    torch.save(ours, tmp_path / "model.pt")
    copies = (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(tmp_path / "model.pt", weights_only=False),
        torch.load(io.BytesIO((tmp_path / "model.pt").read_bytes()), weights_only=False),
    )
    for twin in copies:
        assert kinds(twin) == kinds(ours)
        torch.testing.assert_close(train(twin), expected, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    ours = convert(network()).model
    ours[1] = nn.Identity()  # statistics would count the recomputation as a second batch
    results = []
    for run in (ours, lambda x: checkpoint(ours, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        x = images().requires_grad_()
        run(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in ours.parameters())])
        ours.zero_grad()
    torch.testing.assert_close(*results)


def test_saved_tensors_can_be_offloaded() -> None:
    ours, packed = convert(network()).model, []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.numel())
        return tensor.clone()

    plain = train(copy.deepcopy(ours))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hooked = train(copy.deepcopy(ours))
    with torch.autograd.graph.save_on_cpu():
        offloaded = train(copy.deepcopy(ours))
    assert packed
    torch.testing.assert_close(hooked, plain)
    torch.testing.assert_close(offloaded, plain)


@pytest.mark.parametrize("strict", [True, False])
def test_export_for_inference(strict: bool) -> None:
    ours = convert(network()).model.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(ours, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    for x in (images(), images()[:3]):
        torch.testing.assert_close(program.module()(x), revert(ours).model(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("order", ["convert first", "compile first", "compile in place first"])
def test_compiled_before_or_after(order: str) -> None:
    def build() -> nn.Module:
        model = network()
        model[1].momentum = 0.1  # torch.nn's cumulative average cannot be traced
        return model

    model, recorder = build(), Recorder()
    compiled: Any = model
    if order == "compile in place first":
        model.compile(fullgraph=True, backend=recorder)
    elif order == "compile first":
        compiled = torch.compile(model, fullgraph=True, backend=recorder)
    if order != "convert first":
        compiled(images())
        assert not recorder.by_hand()
    convert(model, inplace=True)
    if order == "convert first":
        compiled = torch.compile(model, fullgraph=True, backend=recorder)
    model.load_state_dict(build().state_dict())
    torch.testing.assert_close(train(compiled)[:3], train(build())[:3])
    assert recorder.by_hand()


def test_traced_first() -> None:
    traced = torch.fx.symbolic_trace(network())
    ours, report = convert(traced)
    assert report.share == 1
    torch.testing.assert_close(train(ours), train(network()), rtol=1e-10, atol=1e-12)
    assert not backward_kernels(ours)


def test_traced_first_and_fused() -> None:
    """A graph of torch.fx writes its code anew whenever it likes, and is left alone by fuse."""
    traced = torch.fx.symbolic_trace(network())
    ours, report = convert(traced, fuse=True)
    assert report.share == 1
    assert "graph of torch.fx" in report.unfused[0].note
    ours.eval().recompile()
    again = pickle.loads(pickle.dumps(ours))
    x = images()
    torch.testing.assert_close(again(x), ours(x))
    around = nn.Sequential(torch.fx.symbolic_trace(network()), nn.Linear(3, 3), nn.ReLU())
    _, report = convert(around, fuse=True)
    assert [layer.name for layer in report.fused] == ["1 + 2"]
    assert report.unfused[0].name == "0"


def test_synchronised_batch_norm_first() -> None:
    """It builds torch.nn's layer out of any batch norm, so convert comes after it."""
    model, _ = convert(network())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    convert(model, inplace=True)
    assert type(model[1]) is TWINS[nn.SyncBatchNorm]
