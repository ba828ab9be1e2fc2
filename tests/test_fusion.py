"""Fused runs of layers: found where they are safe, the same numbers, nothing else changed."""

import copy
import functools
import logging
import operator
import pickle
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import manual_ops
import models
from benchmarks.measure import saved_bytes
from manual_ops import nn as manual_nn
from manual_ops.testing.compositions import batch_norm_relu_conv2d


class Block(nn.Module):
    """Of a residual network, by functional calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return F.relu(out)


class WithLoss(nn.Module):
    """A classifier that returns its loss."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1, **settings)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.head(torch.relu(self.hidden(x))), target)


class Alias(nn.Module):
    """A tensor that is changed in place under another name, and a number that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.linear(x)
        size = more = x.shape[1]
        x += torch.relu(self.linear(x.exp()))
        more += 1
        return before * size + x * more


class PlusVector(nn.Module):
    """A sum whose other operand, which something else saves, is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.norm(x) + x.mean((0, 2, 3), keepdim=True).exp()))


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def images(channels: int = 2, size: int = 8) -> tuple[Tensor, ...]:
    return (torch.randn(3, channels, size, size, dtype=torch.float64),)


NORM_RELU_CONV = "batch_norm_relu_conv2d"
POOL_FIRST = "max-pool before rectifier"

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], list[str]]] = {
    "norm_relu_conv": (
        lambda: chain(nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3, padding="same")),
        images,
        [NORM_RELU_CONV],
    ),
    "relu_pool": (
        lambda: chain(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)),
        images,
        [POOL_FIRST],
    ),
    "norm_relu_pool_conv": (
        lambda: chain(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 2, 1)),
        images,
        [POOL_FIRST],
    ),
    "conv_relu": (lambda: chain(nn.Conv2d(2, 3, 3), nn.ReLU()), images, ["conv_relu"]),
    "linear_relu": (
        lambda: chain(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
        lambda: (torch.randn(5, 4, dtype=torch.float64),),
        ["linear_relu"],
    ),
    "loss": (
        WithLoss,
        lambda: (torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 3, 2, 0])),
        ["linear_relu", "linear_cross_entropy"],
    ),
    **{
        f"loss_of_probabilities{name}": (
            functools.partial(WithLoss, **settings),
            lambda: (torch.randn(5, 6, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)),
            ["linear_relu", "linear_cross_entropy"],
        )
        for name, settings in {"": {}, "_negative_index": {"ignore_index": -1}}.items()
    },
    "broadcast": (PlusVector, images, [NORM_RELU_CONV]),
    "alias": (Alias, lambda: (torch.randn(5, 4, dtype=torch.float64),), ["linear_relu"]),
    # The second block's sum has an operand that the first one's op does not save: no gain.
    "residual": (
        lambda: chain(nn.Conv2d(2, 2, 1), *(Block(2) for _ in range(4))),
        images,
        [NORM_RELU_CONV] * 6,
    ),
}


def test_logits_as_their_own_target_are_left_alone() -> None:
    class Entropy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.loss = nn.Linear(4, 3), nn.CrossEntropyLoss()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.linear(x)
            return self.loss(logits, logits)

    model, x = Entropy(), torch.randn(5, 4)
    fused, report = manual_ops.convert(model, fuse=True)
    assert report.fused == ()
    torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str, training: bool) -> None:
    build, draw, expected = CASES[name]
    torch.manual_seed(0)
    model, inputs = build().double().train(training), draw()
    fused, report = manual_ops.convert(model, fuse=True, verify=True, inputs=inputs)
    assert [layer.kind for layer in report.fused] == expected
    assert report.unfused == ()
    assert report.differences is not None
    assert all(difference.relative < 1e-12 for difference in report.differences.values())
    assert fused.state_dict().keys() == model.state_dict().keys()
    assert isinstance(fused, type(model))
    compared = manual_ops.convert(model, fuse=True, dry_run=True).report
    assert compared.fused == report.fused
    assert type(model) is type(build())


def test_report_names_the_layers() -> None:
    model = models.build("resnet18", nn, (3, 32, 32), 10)
    _, report = manual_ops.convert(model, fuse=True)
    names = [layer.name for layer in report.fused]
    assert "layer1.0.bn1 + layer1.0.relu + layer1.0.conv2" in names
    assert "layer1.0.bn2 + add + layer1.0.relu + layer1.1.conv1" in names
    # Its other summand is the output of the norm of a shortcut, which nothing else saves.
    assert "layer2.0.bn2 + add + layer2.0.relu + layer2.1.conv1" not in names
    assert "fused: batch_norm_relu_conv2d: layer1.0.bn1 + layer1.0.relu" in str(report)


class ChangedBetween(nn.Module):
    """What a layer reads is overwritten before the rectifier, the convolution or the loss."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how, self.relu = how, nn.ReLU(inplace=True)
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
        self.linear, self.loss = nn.Linear(4, 4), nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        x, layer = x.clone(), self.norm if "norm" in self.how else self.linear
        h = layer(x)
        if "function" in self.how:
            y = F.relu(x, True)
        elif "method" in self.how:
            y = x.mul_(2)
        elif "operator" in self.how:
            y = operator.imul(x, 2)
        else:
            y = self.relu(x)
        if "loss" in self.how:
            return self.loss(h, y)
        h = torch.relu(h)
        return self.conv(h) + y if "norm" in self.how else h + y


class OntoActivation(ChangedBetween):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(x))
        h.add_(1)
        return self.conv(h)


class SumElsewhere(ChangedBetween):
    """The other summand is seen to be overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.exp()
        shown = h.view_as(h)
        h += self.norm(x)
        return self.conv(torch.relu(h)) + shown


class Scaled(ChangedBetween):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(torch.add(self.norm(x), x.exp(), alpha=2)))


class PlusNumber(ChangedBetween):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.norm(x) + 1))


def nothing_to_fuse() -> dict[str, nn.Module]:
    """Where a fused op would change the result, or save nothing."""
    hooked = chain(nn.Linear(4, 4), nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            normalised = self.norm(x)
            return self.conv(torch.relu(normalised)) + normalised

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            return self.pool(torch.relu_(x)) + x[..., ::2, ::2]

    ways = ("function", "method", "operator", "item", "module", "loss")
    return {
        **{f"changed_by_{way}": ChangedBetween(way) for way in ways},
        "changed_before_conv": ChangedBetween("norm"),
        "changed_activation": OntoActivation(),
        "sum_elsewhere": SumElsewhere(),
        "scaled_sum": Scaled(),
        "plus_number": PlusNumber(),
        "hook": hooked,
        "norm_read_twice": Twice(),
        "rectified_in_place_and_read": InPlace(),
        "padding_mode": chain(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        "indices": chain(nn.ReLU(), nn.MaxPool2d(2, return_indices=True)),
        "other_activation": chain(nn.BatchNorm2d(2), nn.GELU(), nn.Conv2d(2, 2, 1)),
        "subclass": chain(type("Own", (nn.Linear,), {})(4, 4), nn.ReLU()),
    }


@pytest.mark.parametrize("name", nothing_to_fuse())
def test_left_alone(name: str) -> None:
    model = nothing_to_fuse()[name]
    fused, report = manual_ops.convert(model, fuse=True)
    assert report.fused == ()
    assert type(fused) is type(model)


def test_parts_where_the_whole_cannot_be_traced() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain(nn.Linear(4, 3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    class ByMode(Outer):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if self.training else self.inner(-x)

    for kind, reason in ((Outer, "control flow"), (ByMode, "self.training")):
        model, report = manual_ops.convert(kind(), fuse=True)
        assert [layer.name for layer in report.fused] == ["inner.0 + inner.1"]
        ((name, found, note),) = [(u.name, u.kind, u.note) for u in report.unfused]
        assert (name, found) == ("(model)", kind.__name__)
        assert reason in note
        assert type(model) is kind


class Untraceable(nn.Module):
    """Code that torch.fx would record as something else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain(nn.Linear(4, 4), nn.ReLU())
        self.register_buffer("mean", torch.ones(4))
        self.calls, self.seen, self.log = 0, [], SimpleNamespace(count=0, both=([], []))


def _plain(self: Any, x: Tensor) -> Tensor:
    return self.body(x)


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        features = self.body(x)
    return features * 2


def _switched_off(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    features = self.body(x)
    torch.set_grad_enabled(True)
    return features


def _with_grad(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return self.body(x)


def _inference(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return self.body(x)


def _autocast(enabled: bool) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=enabled):
            return self.body(x)

    return forward


def _checkpoint(use_reentrant: bool) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=use_reentrant)

    return forward


def _offloaded(self: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return self.body(x)


def _counts(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.body(x)


def _updates_buffer(self: Any, x: Tensor) -> Tensor:
    self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
    return self.body(x - self.mean)


def _updates_hidden_buffer(self: Any, x: Tensor) -> Tensor:
    self._buffers["mean"] += 1
    return self.body(x)


def _keeps(self: Any, x: Tensor) -> Tensor:
    self.features = self.body(x)
    return self.features


def _appends(self: Any, x: Tensor) -> Tensor:
    self.seen.append(self.body(x))
    return self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]


def _counts_elsewhere(self: Any, x: Tensor) -> Tensor:
    self.log.count += 1
    return self.body(x)


def _appends_elsewhere(self: Any, x: Tensor) -> Tensor:
    self.log.both[0].append(x)
    return self.body(x)


def _adds_a_loss(self: Any, x: Tensor) -> Tensor:
    features = self.body(x)
    LOSSES.append(features.square().mean())
    return features


def _prints(self: Any, x: Tensor) -> Tensor:
    print(x)
    return self.body(x)


def _draws(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if random.random() < 0.5 else self.body(-x)


def _draws_from_numpy(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * np.random.rand()  # noqa: NPY002


def _draws_from_torch(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if torch.rand(()) < 0.5 else self.body(-x)


def _makes_tensor(self: Any, x: Tensor) -> Tensor:
    return self.body(x) + torch.arange(4)


def _asks_for_type(self: Any, x: Tensor) -> Tensor:
    return self.body(torch.stack(x) if not torch.is_tensor(x) else x)


def _sets_data(self: Any, x: Tensor) -> Tensor:
    x.data = x.data + 1
    return self.body(x)


def _any_number(self: Any, *x: Tensor) -> Tensor:
    return self.body(x[0])


LOSSES: list[Tensor] = []

UNTRACEABLE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no_grad": (_no_grad, "grad mode"),
    "no_grad_decorator": (torch.no_grad()(_plain), "grad mode"),
    "set_grad_enabled": (_switched_off, "grad mode"),
    "enable_grad": (_with_grad, "grad mode"),
    "inference_mode": (_inference, "grad mode"),
    "autocast_off": (_autocast(False), "autocast"),
    "autocast_on": (_autocast(True), "autocast"),
    "reentrant_checkpoint": (_checkpoint(True), "type of a value"),
    "checkpoint": (_checkpoint(False), "saved-tensor hooks"),
    "save_on_cpu": (_offloaded, "saved-tensor hooks"),
    "counter": (_counts, "changes attributes of Untraceable"),
    "buffer": (_updates_buffer, "changes attributes of Untraceable"),
    "hidden_buffer": (_updates_hidden_buffer, "aten.add_.Tensor"),
    "attribute": (_keeps, "changes attributes of Untraceable"),
    "list": (_appends, "changes attributes of Untraceable"),
    "counter_elsewhere": (_counts_elsewhere, "changes attributes of Untraceable"),
    "list_elsewhere": (_appends_elsewhere, "changes attributes of Untraceable"),
    "loss_elsewhere": (_adds_a_loss, "computes mean for something besides"),
    "print": (_prints, "prints a value"),
    "random": (_draws, "random numbers"),
    "numpy": (_draws_from_numpy, "random numbers"),
    "torch_random": (_draws_from_torch, "aten.rand.default"),
    "constant": (_makes_tensor, "aten.arange"),
    "isinstance": (_asks_for_type, "type of a value"),
    "data": (_sets_data, "sets data"),
    "variadic": (_any_number, "takes *x"),
}


def test_what_is_read_in_part_is_fused() -> None:
    """Sizes that are not wanted, messages, and what is computed once and kept, are no effects."""

    class Settings:
        @functools.cached_property
        def factor(self) -> float:
            return 2.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain(nn.Linear(4, 4), nn.ReLU())
            self.settings, self.log = Settings(), logging.getLogger("model")
            self.settings.itself = self.settings

        def forward(self, x: Tensor) -> Tensor:
            size, _ = x.shape
            x.size(1)
            torch._assert(x.dim() == 2, f"two dims, got {x.shape}")
            self.log.debug("rows: %s", size)
            return self.settings.factor * self.body(x).reshape(size, 2, 2)

    _, report = manual_ops.convert(Model(), fuse=True)
    assert [layer.name for layer in report.fused] == ["body.0 + body.1"]


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_is_not_recorded_is_refused(name: str) -> None:
    forward, reason = UNTRACEABLE[name]
    kind = type("Untraceable", (Untraceable,), {"forward": forward})
    model = kind()
    attributes = set(vars(model))
    states = random.getstate(), np.random.get_state()[2], torch.get_rng_state()  # noqa: NPY002
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    fused, report = manual_ops.convert(model, inplace=True, fuse=True)
    assert [layer.name for layer in report.fused] == ["body.0 + body.1"]
    ((found, note),) = [(layer.name, layer.note) for layer in report.unfused]
    assert found == "(model)"
    assert reason in note
    assert type(fused) is kind
    assert set(vars(model)) == attributes
    assert (model.calls, model.seen, model.mean.tolist()) == (0, [], [1.0] * 4)
    assert vars(model.log) == {"count": 0, "both": ([], [])}
    assert (random.getstate(), np.random.get_state()[2]) == states[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == modes


def test_buffers_are_read_at_every_call() -> None:
    class Normalised(Untraceable):
        def forward(self, x: Tensor) -> Tensor:
            self.mean.add_(1)
            return self.body(x - self.mean.view(1, -1))

    model = Normalised()
    fused, report = manual_ops.convert(model, fuse=True)
    assert [layer.name for layer in report.fused] == ["body.0 + body.1"]
    assert report.unfused == ()
    x = torch.randn(3, 4)
    for _ in range(2):
        torch.testing.assert_close(fused(x), model(x))
    assert fused.mean.tolist() == [3.0] * 4


def test_missing_arguments() -> None:
    class Masked(Untraceable):
        def forward(
            self, x: Tensor, mask: Tensor | None = None, *, residual: Tensor | None = None
        ) -> Tensor:
            if residual is None:
                residual = x
            h = self.body(x) + residual
            return h * mask if mask is not None else h

    model = Masked()
    fused, report = manual_ops.convert(model, fuse=True)
    assert [layer.name for layer in report.fused] == ["body.0 + body.1"]
    x, mask, residual = torch.randn(3, 3, 4)
    for args, kwargs in (
        ((x,), {}),
        ((x, mask), {}),
        ((x, None), {"residual": residual}),
        ((x,), {"mask": mask, "residual": residual}),
    ):
        torch.testing.assert_close(fused(*args, **kwargs), model(*args, **kwargs))
        compiled = torch.compile(fused, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*args, **kwargs), model(*args, **kwargs))


def test_hooks_on_parts_are_called() -> None:
    model = chain(chain(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 3), nn.ReLU())
    called = []
    model[0].register_forward_hook(lambda *_: called.append("part"))
    fused, report = manual_ops.convert(model, fuse=True)
    assert [layer.name for layer in report.fused] == ["1 + 2", "0.0 + 0.1"]
    fused(torch.randn(2, 4))
    assert called == ["part"]


def _activation_replaced(model: Any) -> None:
    model.block.relu = nn.Tanh()


def _layer_appended(model: Any) -> None:
    model.last.append(nn.Sigmoid())


def _norm_replaced(model: Any) -> None:
    model.block.norm = nn.Identity()


def _pruned(model: Any) -> None:
    prune.l1_unstructured(model.last[0], "weight", 0.5)


def _hooked(model: Any) -> None:
    model.block.conv.register_forward_hook(lambda _layer, _input, output: output * 2)


def _parametrised(model: Any) -> None:
    parametrizations.weight_norm(model.block.conv)


def _container_hooked(model: Any) -> None:
    model.last.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] + 1,))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(self.norm(x)))


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = _Block(), nn.Sequential(nn.Linear(12, 5), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x).flatten(1))


@pytest.mark.parametrize(
    "change",
    [
        _activation_replaced,
        _layer_appended,
        _norm_replaced,
        _pruned,
        _hooked,
        _parametrised,
        _container_hooked,
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_changed_after_fusing(
    change: Callable[[Any], None], compiled: bool, fresh_compiler: None
) -> None:
    """The forward as it is written runs again, in training over several steps."""
    model = _Blocks()
    fused, report = manual_ops.convert(model, fuse=True)
    assert [layer.kind for layer in report.fused] == ["batch_norm_relu_conv2d", "linear_relu"]
    x, trained = torch.randn(4, 2, 4, 4), []
    for one in (model, fused):
        change(one)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        run = torch.compile(one, backend="eager", fullgraph=True) if compiled else one
        for _ in range(3):
            loss = run(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append(one.state_dict())
    torch.testing.assert_close(trained[1], trained[0])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_fused(copied: Callable[[Any], nn.Module]) -> None:
    model, _ = manual_ops.convert(models.build("vgg", nn, (3, 32, 32), 10), fuse=True)
    again = copied(model)
    x = torch.randn(2, 3, 32, 32)
    assert saved_bytes(lambda: again(x)) == saved_bytes(lambda: model(x))
    assert torch.equal(again(x), model(x))
    again.load_state_dict(model.state_dict())
    next(again.parameters()).data.zero_()
    assert not torch.equal(again(x), model(x)), "the copy has parameters of its own"


def test_copies_are_of_one_class() -> None:
    """So that they stack, for an ensemble."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ensemble = [manual_ops.convert(model, fuse=True).model for _ in range(2)]
    ensemble.append(copy.deepcopy(ensemble[0]))
    assert len({type(one) for one in ensemble}) == 1
    parameters, buffers = torch.func.stack_module_state(ensemble)
    x = torch.randn(5, 3)

    def output(of_one: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(ensemble[0], of_one, (x,))

    found = torch.vmap(output)(parameters)
    torch.testing.assert_close(found, model(x).expand(3, 5, 2))
    assert not buffers


def test_revert_and_fuse_again() -> None:
    model = models.build("cifar-cnn", nn, (3, 32, 32), 10)
    fused, report = manual_ops.convert(model, fuse=True, inplace=True)
    assert fused is model
    assert type(model) is not nn.Sequential
    assert manual_ops.convert(model, fuse=True, inplace=True).report.fused == report.fused
    manual_ops.revert(model, inplace=True)
    assert type(model) is nn.Sequential
    assert {type(layer) for layer in model} == {
        *(nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear)
    }


def test_slices_are_of_the_original_class() -> None:
    model = chain(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    fused, _ = manual_ops.convert(model, fuse=True)
    x = torch.randn(2, 4)
    assert type(fused[:2]) is nn.Sequential
    torch.testing.assert_close(fused[2:](fused[:2](x)), model(x))


def test_training_flags_are_kept() -> None:
    model = chain(nn.Linear(4, 3), nn.ReLU(), nn.Dropout()).train()
    model[2].eval()
    fused, _ = manual_ops.convert(model, fuse=True)
    assert [m.training for m in fused.modules()] == [True, True, True, False]


def test_compiles_as_one_graph() -> None:
    build, draw, _ = CASES["residual"]
    fused, _ = manual_ops.convert(build().double(), fuse=True)
    (x,) = draw()
    eager, compiled = (
        copy.deepcopy(fused),
        torch.compile(fused, fullgraph=True, backend="aot_eager"),
    )
    for model in (eager, compiled):
        model(x).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("name", "most"), [("mnist-cnn", 0.8), ("cifar-cnn", 0.8), ("vgg", 0.6), ("resnet18", 0.65)]
)
def test_saves_fewer_bytes(name: str, most: float) -> None:
    shape = (1, 28, 28) if name == "mnist-cnn" else (3, 32, 32)
    model = models.build(name, nn, shape, 10)
    fused, _ = manual_ops.convert(model, fuse=True)
    x = torch.randn(16, *shape)
    ours, theirs = (saved_bytes(lambda m=m: m(x), besides=m.parameters()) for m in (fused, model))
    assert ours <= most * theirs


def test_fused_layers() -> None:
    """The classes, beside the layers that they stand for."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 5)
    layer = manual_nn.BatchNormReLUConv2d(2, 3, 3, padding=1, eps=0.1, momentum=None, bias=False)
    residual = torch.randn_like(x)
    norm = copy.deepcopy(layer.norm)
    for batch in (x, x + 1):
        output = layer(batch, residual)
        expected = layer.conv(F.relu(norm(batch) + residual))
        torch.testing.assert_close(output, expected)
    torch.testing.assert_close(layer.norm.running_var, norm.running_var)
    assert layer.norm.num_batches_tracked == 2
    assert set(layer.state_dict()) == {
        *("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
        *("norm.num_batches_tracked", "conv.weight"),
    }
    torch.testing.assert_close(
        layer.eval()(x),
        batch_norm_relu_conv2d(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            layer.conv.weight,
            eps=0.1,
            padding=1,
        ),
    )
    for fused, plain, shape in (
        (manual_nn.LinearReLU(5, 3), nn.Linear(5, 3), (4, 5)),
        (manual_nn.Conv2dReLU(2, 3, 3, stride=2), nn.Conv2d(2, 3, 3, stride=2), (4, 2, 5, 5)),
    ):
        plain.load_state_dict(fused.state_dict())
        batch = torch.randn(shape)
        torch.testing.assert_close(fused(batch), plain(batch).relu())
    for kind in (manual_nn.Conv2dReLU, manual_nn.BatchNormReLUConv2d):
        with pytest.raises(NotImplementedError, match="reflect"):
            kind(2, 3, 3, padding=1, padding_mode="reflect")
