"""Image files as inputs of a trained model."""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.inputs import Inputs

# What Pillow raises at bad bytes: the last two where the orientation stands among damaged tags.
_DAMAGED = (
    Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError, struct.error,
)  # fmt: skip


def read_image(
    path: Path, inputs: Inputs, *, keep_all: bool = False, invert: bool = False
) -> tuple[Tensor, list[str]]:
    """Read an image file of any size and mode as the images ``inputs``.

    Args:
        path: File in any format that Pillow reads.
        inputs: What the model was trained on.
        keep_all: Squeeze an image of other proportions, instead of cutting its middle out.
        invert: Swap dark and light.

    Returns:
        ``(1, *inputs.input_shape)`` uint8 on the CPU, and what was done to get there.

    Raises:
        ValueError: The file is no image, or damaged, or its values have no known range.
        OSError: It cannot be read.
    """
    channels, height, width = inputs.input_shape
    image, done = _eight_bits(path, open_upright(path))
    if has_transparency(image):
        done.append("transparent parts made white")
    image = opaque(image)
    mode, name = ("L", "grey") if channels == 1 else ("RGB", "colour")
    if image.mode != mode:
        done.append(f"made {name}")
        image = image.convert(mode)
    image = _resized(image, (width, height), keep_all, done)
    if invert:
        image = ImageOps.invert(image)
        done.append("inverted")
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(1, height, width, channels).permute(0, 3, 1, 2), done


def seems_inverted(image: Tensor, inputs: Inputs) -> bool:
    """Return whether a grey image is light where the training images are dark, or the reverse.

    Handwriting is the usual case: black on paper, but white on black in MNIST.

    Args:
        image: ``(1, 1, height, width)`` uint8.
        inputs: What the model was trained on.
    """
    if inputs.input_shape[0] != 1:
        return False
    usual, mean = inputs.mean.item(), image.float().mean().item()
    return abs(usual - 127.5) > 32 and abs(255 - usual - mean) < abs(usual - mean)


def open_upright(path: Path) -> Image.Image:
    """Return the decoded image, turned the way its camera was held.

    Raises:
        ValueError: The file is no image, or damaged.
        OSError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGED as error:
        raise ValueError(f"{path} is not an image, or damaged: {error}") from error


def _eight_bits(path: Path, image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an image of 16 bits per pixel in 8, with a word on it; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image, []
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"{path} has values of no known range: convert it to 8 bits")
    return Image.fromarray((pixels // 257).astype(np.uint8)), ["reduced from 16 to 8 bits"]


def has_transparency(image: Image.Image) -> bool:
    """Return whether a part of the image is transparent."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def opaque(image: Image.Image) -> Image.Image:
    """Return the image as ``"L"`` if it is grey, else ``"RGB"``, its transparent parts white.

    Args:
        image: In any mode of up to 8 bits per channel.
    """
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if has_transparency(image):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _resized(
    image: Image.Image, size: tuple[int, int], keep_all: bool, done: list[str]
) -> Image.Image:
    """Return the image as ``size``, width and height, cut to these proportions or squeezed."""
    if image.size == size:
        return image
    done.append(f"resized from {image.width}x{image.height} to {size[0]}x{size[1]}")
    if keep_all:
        return image.resize(size, Image.Resampling.BILINEAR)
    if image.width * size[1] != image.height * size[0]:
        done[-1] = f"cut to its middle and {done[-1]}"
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
