"""Figures as bytes: PNG for files and TensorBoard, SVG for a page."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from training.figures import FOREGROUND

DPI = 192  # twice that of a plain screen


def to_png(figure: Figure) -> bytes:
    """Return the figure on white, as a PNG file."""
    file = io.BytesIO()
    with _boxes_allowed():
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


@contextmanager
def _boxes_allowed() -> Iterator[None]:
    """Let matplotlib draw a box, without a warning for each, for what no font here has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def to_tensor(png: bytes) -> Tensor:
    """Return a PNG file as ``(3, height, width)`` uint8."""
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an ``<svg>`` element for HTML, in the page's own text colour.

    Args:
        figure: A transparent figure, drawn in ``FOREGROUND``.
        name: Unlike that of any other figure of the page: makes the element's ids differ.
    """
    file = io.StringIO()
    # Text stays text: it can be searched, and read out.
    with _boxes_allowed(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration and document type
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure, and used by none
    return svg.replace(FOREGROUND, "currentColor").strip()
