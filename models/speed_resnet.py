"""A residual network of eight layers, made to train fast."""

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from models.shape import image_shape

WIDTHS = (64, 256, 256)
PATCH = 2  # height and width of the patches that are whitened
LOGIT_SCALE = 0.25  # for rows of length 1, which is what Muon keeps the output layer's at


class SpeedResNet(Module):
    """Whitened patches, three stages of two convolutions, and a linear layer.

    The first convolution is fixed: its kernels are the principal components of 2x2 patches of
    training images, scaled to unit variance, and their negatives, so that what follows starts
    from uncorrelated features. Batch norm only shifts.

    Reference:
        Page, How to Train Your ResNet, 2019; Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single
        GPU, 2024, whose network this is but for the residual connections.
    """

    def __init__(
        self,
        layers: ModuleType,
        input_shape: tuple[int, int, int],
        num_classes: int,
        widths: tuple[int, ...],
    ) -> None:
        """Draw the weights; ``fit_inputs`` replaces those of the first convolution.

        Args:
            layers: Namespace of the layers.
            input_shape: ``(channels, height, width)`` of an image.
            num_classes: Number of logits.
            widths: Channels of each stage.
        """
        super().__init__()
        channels, *size = input_shape
        components = channels * PATCH**2
        self.whiten = layers.Conv2d(channels, 2 * components, PATCH)
        self.whiten.weight.requires_grad_(False)
        torch.nn.init.zeros_(self.whiten.bias)
        self.gelu = layers.GELU()
        inputs = (2 * components, *widths[:-1])
        self.stages = layers.Sequential(*map(lambda i, w: Stage(layers, i, w), inputs, widths))
        height, width = ((length - PATCH + 1) // 2 ** len(widths) for length in size)
        self.pool = layers.MaxPool2d((height, width))
        self.flatten = layers.Flatten()
        self.output = layers.Linear(widths[-1], num_classes, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to logits ``(N, num_classes)``."""
        x = self.stages(self.gelu(self.whiten(input)))
        logits: Tensor = self.output(self.flatten(self.pool(x)))
        return LOGIT_SCALE * logits

    @torch.no_grad()
    def fit_inputs(self, inputs: Tensor) -> None:
        """Make the first convolution whiten the patches of ``inputs``.

        Args:
            inputs: ``(N, channels, H, W)`` normalised training images; some thousands suffice.
        """
        kernels = self.whiten.weight
        patches = inputs.unfold(2, PATCH, 1).unfold(3, PATCH, 1).transpose(1, 3).flatten(0, 2)
        rows = patches.flatten(1)
        variances, components = torch.linalg.eigh(rows.mT @ rows / len(rows))
        # Not divided by less than 0.02: what hardly varies in the images is mostly noise.
        whitening = (components / (variances + 5e-4).sqrt()).mT.view(-1, *kernels.shape[1:])
        kernels.copy_(torch.cat([whitening, -whitening]))


class Stage(Module):
    """``conv 3x3 - max-pool 2 - batch norm - gelu``, then ``x + gelu(batch norm(conv 3x3(x)))``.

    Pooling before normalising and activating leaves both a quarter of the pixels.
    """

    def __init__(self, layers: ModuleType, channels: int, width: int) -> None:
        """Draw the weights of a stage from ``channels`` channels to ``width``."""
        super().__init__()
        self.conv1 = layers.Conv2d(channels, width, 3, padding=1, bias=False)
        self.pool = layers.MaxPool2d(2)
        self.norm1 = _batch_norm(layers, width)
        self.gelu1 = layers.GELU()
        self.conv2 = layers.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _batch_norm(layers, width)
        self.gelu2 = layers.GELU()

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to ``(N, width, H // 2, W // 2)``."""
        x = self.gelu1(self.norm1(self.pool(self.conv1(input))))
        output: Tensor = x + self.gelu2(self.norm2(self.conv2(x)))
        return output


def _batch_norm(layers: ModuleType, width: int) -> Module:
    """Return a batch norm of shift alone, whose running statistics keep up with a short run."""
    norm: Module = layers.BatchNorm2d(width, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def speed_resnet(
    layers: ModuleType, input_shape: tuple[int, ...], num_classes: int, *, width: float = 1.0
) -> Module:
    """Build a ``SpeedResNet`` of 64, 256 and 256 channels, in the channels-last memory format.

    On 3x32x32 images and 10 classes it has 1,972,792 parameters at width 1.

    Args:
        layers: Namespace of the layers, ``manual_ops.nn`` or ``torch.nn``.
        input_shape: ``(channels, height, width)`` of an image, at least 9x9.
        num_classes: Number of logits.
        width: Factor of the numbers of channels.
    """
    shape = image_shape("speed-resnet", input_shape, smallest=2 ** len(WIDTHS) + PATCH - 1)
    widths = tuple(max(1, round(width * size)) for size in WIDTHS)
    model = SpeedResNet(layers, shape, num_classes, widths)
    return model.to(memory_format=torch.channels_last)
