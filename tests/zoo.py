"""Published classifiers, original against converted: ``python -m tests.zoo`` prints the table.

One model of each classification family of torchvision, and two of timm, most of them thinner or
shallower than the published sizes but of the same layers. Each is trained for one step in float64,
as it is, converted, and converted inside ``override()``, on the same images and random numbers.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models import convnext, resnet, swin_transformer, vgg

from manual_ops import convert, override
from manual_ops.convert import Report
from tests.harness import CountOps

CLASSES = 10


@dataclass(frozen=True)
class Family:
    """A model, and the side of the square images it is given.

    Attributes:
        build: Returns the model.
        size: Height and width of the images.
        subclasses: Kinds of layer that ``convert`` leaves alone because they are subclasses of a
            torch.nn layer with code of their own; only ``override()`` reaches what they compute.
    """

    build: Callable[[], nn.Module]
    size: int = 64
    subclasses: frozenset[str] = frozenset()


def _vgg(batch_norm: bool) -> nn.Module:
    model = vgg.VGG(vgg.make_layers(vgg.cfgs["A"], batch_norm=batch_norm), init_weights=False)
    return _with_narrow_classifier(model, (0, 3, 6))


def _with_narrow_classifier(model: nn.Module, positions: tuple[int, ...]) -> nn.Module:
    """Leave 16 of 4096 hidden units: the published ones fill a gigabyte in float64."""
    sizes = [model.classifier[positions[0]].in_features, 16, 16, CLASSES]
    for position, inputs, outputs in zip(positions, sizes[:-1], sizes[1:], strict=True):
        model.classifier[position] = nn.Linear(inputs, outputs)
    return model


_bottlenecks = partial(
    models.ResNet, resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, zero_init_residual=False
)
_swin = partial(
    models.SwinTransformer,
    patch_size=[4, 4],
    embed_dim=8,
    depths=[2, 2],
    num_heads=[1, 2],
    window_size=[4, 4],
    dropout=0.1,
    attention_dropout=0.1,
    num_classes=CLASSES,
)

FAMILIES: dict[str, Family] = {
    "AlexNet": Family(
        lambda: _with_narrow_classifier(models.AlexNet(num_classes=CLASSES), (1, 4, 6))
    ),
    "ConvNeXt": Family(
        lambda: models.ConvNeXt(
            [
                convnext.CNBlockConfig(8, 16, 1),
                convnext.CNBlockConfig(16, 32, 2),
                convnext.CNBlockConfig(32, None, 1),
            ],
            stochastic_depth_prob=0.1,
            num_classes=CLASSES,
        ),
        subclasses=frozenset({"LayerNorm2d"}),
    ),
    "DenseNet": Family(
        lambda: models.DenseNet(8, (2, 2, 2), 16, drop_rate=0.1, num_classes=CLASSES)
    ),
    "EfficientNet": Family(lambda: models.efficientnet_b0(num_classes=CLASSES)),
    "EfficientNetV2": Family(lambda: models.efficientnet_v2_s(num_classes=CLASSES)),
    "GoogLeNet": Family(lambda: models.GoogLeNet(num_classes=CLASSES, init_weights=False)),
    "Inception v3": Family(
        lambda: models.Inception3(num_classes=CLASSES, aux_logits=False, init_weights=False),
        size=96,
    ),
    "MaxViT": Family(
        lambda: models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.1, num_classes=CLASSES)
    ),
    "MNASNet": Family(lambda: models.MNASNet(0.5, num_classes=CLASSES)),
    "MobileNetV2": Family(lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5)),
    "MobileNetV3 large": Family(lambda: models.mobilenet_v3_large(num_classes=CLASSES)),
    "MobileNetV3 small": Family(lambda: models.mobilenet_v3_small(num_classes=CLASSES)),
    "RegNetX": Family(lambda: models.regnet_x_400mf(num_classes=CLASSES)),
    "RegNetY": Family(lambda: models.regnet_y_400mf(num_classes=CLASSES)),
    "ResNet": Family(lambda: models.resnet18(num_classes=CLASSES)),
    "ResNet bottleneck": Family(_bottlenecks),
    "ResNeXt": Family(partial(_bottlenecks, groups=32, width_per_group=4)),
    "ShuffleNetV2": Family(lambda: models.shufflenet_v2_x0_5(num_classes=CLASSES)),
    "SqueezeNet 1.0": Family(lambda: models.squeezenet1_0(num_classes=CLASSES)),
    "SqueezeNet 1.1": Family(lambda: models.squeezenet1_1(num_classes=CLASSES)),
    "Swin": Family(_swin),
    "Swin v2": Family(
        partial(
            _swin,
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
        )
    ),
    "VGG": Family(partial(_vgg, batch_norm=False)),
    "VGG-BN": Family(partial(_vgg, batch_norm=True)),
    "ViT": Family(
        lambda: models.VisionTransformer(
            32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES
        ),
        size=32,
    ),
    "Wide ResNet": Family(partial(_bottlenecks, width_per_group=128)),
    "timm ResNet-D": Family(
        lambda: timm.create_model("resnet18d", num_classes=CLASSES, drop_rate=0.1)
    ),
    "timm ViT": Family(
        lambda: timm.models.VisionTransformer(
            img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2
        ),
        size=32,
        subclasses=frozenset({"LayerNorm"}),
    ),
}


class ExactHardsigmoid(TorchFunctionMode):
    """Compute ``F.hardsigmoid`` from simpler functions of torch.

    Its own backward multiplies by 1/6 rounded to float32, in float64 as well: an error of 3e-8 in
    every gradient of a squeeze-and-excitation block.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.hardsigmoid:
            return (args[0] + 3).clamp(0, 6) / 6
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Step:
    """Loss and gradients of one training step, and the ATen calls that its backward made."""

    loss: Tensor
    gradients: dict[str, Tensor]
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The same step four times."""

    report: Report  # of the fused model
    original: Step
    converted: Step
    overridden: Step
    fused: Step


def compare(family: Family) -> Comparison:
    """Train one step of the model: as it is, converted, inside ``override()``, and fused."""
    torch.manual_seed(0)
    model, loss_of = family.build().double().train(), nn.CrossEntropyLoss(label_smoothing=0.1)
    with torch.no_grad():
        for parameter in model.parameters():  # heads and scales that start at zero hide errors
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    original = _step(model, loss_of, family.size, ExactHardsigmoid())
    fused_model, report = convert(model, fuse=True)
    model, _ = convert(model, inplace=True)
    converted = _step(model, convert(loss_of).model, family.size, nullcontext())
    overridden = _step(model, loss_of, family.size, override())
    fused = _step(fused_model, convert(loss_of).model, family.size, nullcontext())
    return Comparison(report, original, converted, overridden, fused)


def _step(model: nn.Module, loss_of: nn.Module, size: int, context: Any) -> Step:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    target = torch.randint(CLASSES, (4,), generator=generator)
    torch.manual_seed(2)  # the same masks of dropout and stochastic depth
    with context:
        output = model(images)
        outputs = output if isinstance(output, tuple) else (output,)
        loss = sum(loss_of(logits, target) for logits in outputs)
    with CountOps() as ops:
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return Step(loss.detach(), dict(zip(names, gradients, strict=True)), tuple(ops.calls))


def loss_error(ours: Step, theirs: Step) -> float:
    """Relative error of the loss."""
    return float((ours.loss - theirs.loss).abs() / theirs.loss)


def gradient_error(ours: Step, theirs: Step) -> float:
    """Largest relative error of a parameter's gradient, by its largest element.

    Gradients that are zero but for rounding (of a bias before batch norm) are measured by the
    largest gradient of the model times 1e-5.
    """
    largest = max(float(g.abs().max()) for g in theirs.gradients.values())
    return max(
        float((ours.gradients[name] - g).abs().max()) / max(float(g.abs().max()), 1e-5 * largest)
        for name, g in theirs.gradients.items()
    )


def main() -> None:
    """Print one row a family."""
    print(
        "| family | layers converted | left alone | loss | gradients | gradients in override "
        "| runs fused | gradients fused |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        found = compare(family)
        done, left = len(found.report.converted), sorted({x.kind for x in found.report.left})
        print(
            f"| {name} | {done} of {done + len(found.report.left)} | {', '.join(left)} "
            f"| {loss_error(found.converted, found.original):.0e} "
            f"| {gradient_error(found.converted, found.original):.0e} "
            f"| {gradient_error(found.overridden, found.original):.0e} "
            f"| {len(found.report.fused)} | {gradient_error(found.fused, found.original):.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
