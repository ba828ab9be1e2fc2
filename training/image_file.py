"""Image files as inputs of a trained model."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.inputs import Inputs


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
    image, done = _eight_bits(path, _open(path))
    image = _opaque(image, done)
    mode, name = ("L", "grey") if channels == 1 else ("RGB", "colour")
    if image.mode != mode:
        if (image.mode in ("1", "L")) != (mode == "L"):
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


def _open(path: Path) -> Image.Image:
    """Return the decoded image, turned the way its camera was held."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not an image, or damaged: {error}") from error


def _eight_bits(path: Path, image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an image of 16 bits per pixel in 8, with a word on it; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image, []
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"{path} has values of no known range: convert it to 8 bits")
    return Image.fromarray((pixels // 257).astype(np.uint8)), ["reduced from 16 to 8 bits"]


def _opaque(image: Image.Image, done: list[str]) -> Image.Image:
    """Return the image on white, without its transparency if it has any."""
    if not image.has_transparency_data:
        return image
    grey = image.mode in ("L", "LA", "La")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        done.append("transparent parts made white")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("L" if grey else "RGB")


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
