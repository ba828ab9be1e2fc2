"""Every model: sizes, adaptation to the data, options, and equality on both layer namespaces."""

import pytest
import torch
from torch import nn

import manual_ops.nn
import models

NAMES = list(models.MODELS)
CONVOLUTIONAL = [name for name in NAMES if name != "mlp"]


def parameter_counts(model: nn.Module) -> list[int]:
    """Parameters of each layer that has any, in order."""
    counts = [sum(p.numel() for p in layer.parameters(recurse=False)) for layer in model.modules()]
    return [count for count in counts if count]


@pytest.mark.parametrize("layers", [manual_ops.nn, nn], ids=["manual", "torch"])
class TestSizes:
    def test_mnist_cnn_has_the_published_parameters(self, layers):
        model = models.build("mnist-cnn", layers, (1, 28, 28), 10)
        assert parameter_counts(model) == [416, 6_416, 7_850]

    def test_cifar_cnn_has_the_published_parameters(self, layers):
        model = models.build("cifar-cnn", layers, (3, 32, 32), 10)
        assert parameter_counts(model) == [448, 4_640, 18_496, 262_400, 2_570]

    def test_vgg_has_eight_convolutions_and_one_output_layer(self, layers):
        model = models.build("vgg", layers, (3, 32, 32), 10)
        convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert convolutions == [64, 128, 256, 256, 512, 512, 512, 512]
        pools = [(m.kernel_size, m.stride) for m in model.modules() if isinstance(m, nn.MaxPool2d)]
        assert pools == [(3, 2)] * 5
        assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)] == [
            (10, 512)
        ]

    def test_mlp_takes_any_hidden_sizes(self, layers):
        hidden = (1000, 500, 200, 100, 100)
        model = models.build("mlp", layers, (3, 32, 32), 10, hidden=hidden)
        shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
        assert shapes == [
            (1000, 3072), (500, 1000), (200, 500), (100, 200), (100, 100), (10, 100),
        ]  # fmt: skip

    def test_mlp_without_hidden_layers_is_one_linear_layer(self, layers):
        model = models.build("mlp", layers, (2,), 3, hidden=())
        assert parameter_counts(model) == [2 * 3 + 3]


@pytest.mark.parametrize("shape", [(1, 9, 9), (1, 28, 28), (3, 32, 32), (2, 30, 17), (3, 45, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_adapts_to_channels_size_and_classes(name, shape):
    model = models.build(name, manual_ops.nn, shape, 7)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("name", NAMES)
def test_both_namespaces_start_from_the_same_weights_and_agree(name):
    built = []
    for layers in (manual_ops.nn, nn):
        torch.manual_seed(3)
        built.append(models.build(name, layers, (1, 16, 16), 5).double())
    manual, reference = built
    assert list(manual.state_dict()) == list(reference.state_dict())
    for ours, theirs in zip(manual.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    inputs, labels = torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.arange(6) % 5
    for model, layers in ((manual, manual_ops.nn), (reference, nn)):
        torch.manual_seed(4)  # dropout
        layers.CrossEntropyLoss()(model(inputs), labels).backward()
    for ours, theirs in zip(manual.parameters(), reference.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(manual.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_manual_ones(name):
    model = models.build(name, manual_ops.nn, (1, 16, 16), 5)
    with_parameters = [m for m in model.modules() if list(m.parameters(recurse=False))]
    assert with_parameters
    assert {type(m).__module__.partition(".")[0] for m in with_parameters} == {"manual_ops"}


class TestOptions:
    @pytest.mark.parametrize(
        ("activation", "layer"),
        [
            ("sigmoid", nn.Sigmoid),
            ("tanh", nn.Tanh),
            ("relu", nn.ReLU),
            ("leaky_relu", nn.LeakyReLU),
        ],
    )
    def test_mlp_activation(self, activation, layer):
        model = models.build("mlp", manual_ops.nn, (4,), 2, hidden=(3, 3), activation=activation)
        assert sum(isinstance(m, layer) for m in model.modules()) == 2

    def test_mlp_slope_of_leaky_relu(self):
        model = models.build(
            "mlp", manual_ops.nn, (4,), 2, activation="leaky_relu", negative_slope=0.002
        )
        assert [m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)] == [0.002]

    @pytest.mark.parametrize("name", ["mlp", "fashion-cnn", "vgg"])
    def test_batch_norm_is_an_option(self, name):
        def norms(batch_norm: bool) -> int:
            model = models.build(name, manual_ops.nn, (1, 16, 16), 2, batch_norm=batch_norm)
            return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())

        assert norms(False) == 0
        assert norms(True) == {"mlp": 1, "fashion-cnn": 3, "vgg": 8}[name]

    @pytest.mark.parametrize("name", ["mlp", "fashion-cnn"])
    def test_dropout_is_an_option(self, name):
        def probabilities(dropout: float) -> set[float]:
            model = models.build(name, manual_ops.nn, (1, 16, 16), 2, dropout=dropout)
            return {m.p for m in model.modules() if isinstance(m, nn.Dropout)}

        assert probabilities(0.0) == set()
        assert probabilities(0.25) == {0.25}


class TestErrors:
    def test_unknown_model(self):
        with pytest.raises(ValueError, match=r"no model 'lenet'.*mnist-cnn"):
            models.build("lenet", nn, (1, 28, 28), 10)

    def test_unknown_option(self):
        with pytest.raises(ValueError, match="mnist-cnn has no option hidden"):
            models.build("mnist-cnn", nn, (1, 28, 28), 10, hidden=(3,))

    def test_unknown_activation(self):
        with pytest.raises(ValueError, match=r"activation must be one of sigmoid.*'swish'"):
            models.build("mlp", nn, (4,), 2, activation="swish")

    @pytest.mark.parametrize("name", CONVOLUTIONAL)
    def test_points_are_no_images(self, name):
        with pytest.raises(ValueError, match=f"{name} needs images.*mlp takes any shape"):
            models.build(name, nn, (2,), 2)

    @pytest.mark.parametrize(
        ("name", "smallest"), [("mnist-cnn", 4), ("cifar-cnn", 8), ("speed-resnet", 9)]
    )
    def test_images_too_small(self, name, smallest):
        model = models.build(name, nn, (1, smallest, smallest), 2)
        assert model(torch.randn(3, 1, smallest, smallest)).shape == (3, 2)
        with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels, got 9x3"):
            models.build(name, nn, (1, 3, 9), 2)


def test_resnet18_is_torchvisions_and_converted_for_manual_layers():
    torch.manual_seed(0)
    theirs = models.build("resnet18", torch.nn, (1, 28, 28), 10)
    torch.manual_seed(0)
    ours = models.build("resnet18", manual_ops.nn, (1, 28, 28), 10)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    kinds = {type(m) for m in ours.modules() if list(m.parameters(recurse=False))}
    assert kinds == {manual_ops.nn.Conv2d, manual_ops.nn.BatchNorm2d, manual_ops.nn.Linear}
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4)
    losses = [torch.nn.functional.cross_entropy(m(images), labels) for m in (ours, theirs)]
    gradients = [
        torch.autograd.grad(loss, list(m.parameters()))
        for loss, m in zip(losses, (ours, theirs), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class TestSpeedResNet:
    def test_first_convolution_whitens_patches(self):
        model = models.build("speed-resnet", manual_ops.nn, (3, 16, 16), 10)
        mixing = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.5]])
        images = torch.einsum("ij,njhw->nihw", mixing, torch.randn(400, 3, 16, 16))
        model.fit_inputs(images)
        features = model.whiten(images).transpose(0, 1).flatten(1)
        components, negatives = features.chunk(2)
        torch.testing.assert_close(negatives, -components)
        covariance = components @ components.mT / components.shape[1]
        torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.05)

    def test_constant_images_do_not_blow_up(self):
        model = models.build("speed-resnet", nn, (1, 16, 16), 10)
        model.fit_inputs(torch.zeros(10, 1, 16, 16))
        assert model.whiten.weight.abs().max() < 50

    def test_fixed_parameters_are_left_alone_and_the_others_are_not(self):
        model = models.build("speed-resnet", manual_ops.nn, (1, 12, 12), 4, width=0.25)
        images, labels = torch.randn(8, 1, 12, 12), torch.arange(8) % 4
        manual_ops.nn.CrossEntropyLoss()(model(images), labels).backward()
        fixed = {name for name, p in model.named_parameters() if p.grad is None}
        norms = {f"stages.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
        assert fixed == norms | {"whiten.weight"}

    def test_width_scales_the_channels(self):
        model = models.build("speed-resnet", nn, (3, 32, 32), 10, width=0.5)
        kernels = [tuple(m.weight.shape[:2]) for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert kernels == [
            (24, 3), (32, 24), (32, 32), (128, 32), (128, 128), (128, 128), (128, 128),
        ]  # fmt: skip

    def test_works_in_channels_last_throughout(self):
        model = models.build("speed-resnet", manual_ops.nn, (3, 32, 32), 10, width=0.25)
        outputs = []
        for stage in model.stages:
            stage.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        model(torch.randn(4, 3, 32, 32)).sum().backward()
        assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outputs)
