"""Tensors as small recipes: what hypothesis draws and prints instead of elements."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor, inf, nan

from tests.properties.strategies import integers, sampled_from

# Of every dtype, for what is not finite there, or not distinct, becomes a special value itself.
EXTREMES = torch.tensor(
    [nan, -nan, inf, -inf, 0.0, -0.0, 1.0, -3.0, 3.0, 6.0, 1e-30, -100.0, 1e4, -1e30, 1e30],
    dtype=torch.float64,
)


def _extreme(shape: tuple[int, ...], g: Generator) -> Tensor:
    """Ordinary numbers, about one in four of them replaced."""
    drawn = EXTREMES[torch.randint(len(EXTREMES), shape, generator=g)]
    ordinary = torch.randn(shape, generator=g, dtype=torch.float64)
    return ordinary.where(torch.rand(shape, generator=g) < 0.75, drawn)


VALUES: dict[str, Callable[[tuple[int, ...], Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64),
    # Kinks, ties, zeros, rows of equal numbers.
    "grid": lambda shape, g: torch.randint(-3, 7, shape, generator=g).double(),
    "zero": lambda shape, g: torch.zeros(shape, dtype=torch.float64),
    "huge": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64) * 1e4,
    "extreme": _extreme,
    "unit": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64),
    # Of ten classes, with certainty among them.
    "probability": lambda shape, g: torch.randint(11, shape, generator=g).double() / 10,
    "mask": lambda shape, g: (torch.rand(shape, generator=g) < 0.7).double(),
}

LAYOUTS = ("contiguous", "transposed", "channels_last", "strided", "offset", "expanded", "overlap")


@dataclass(frozen=True)
class Made:
    """A tensor to be made, the same each time.

    Attributes:
        shape: Its sizes.
        dtype: Its dtype.
        values: A key of ``VALUES``, or ``labels``: indices below ``classes``.
        seed: Of the numbers.
        layout: One of ``LAYOUTS``, as far as the shape allows it.
        device: ``cpu`` or ``meta``.
        requires_grad: Whether it is a leaf that requires grad.
        classes: Number of labels.
        odd: A label that stands among the labels as well.
        rounded: Keep the dtype where a cotangent takes the output's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    values: str = "normal"
    seed: int = 0
    layout: str = "contiguous"
    device: str = "cpu"
    requires_grad: bool = False
    classes: int = 0
    odd: int | None = None
    rounded: bool = False

    def build(self) -> Tensor:
        """Make it."""
        tensor = _laid_out(self._drawn, self.shape, self.layout).to(self.device)
        return tensor.requires_grad_(self.requires_grad)

    def _drawn(self, *shape: int) -> Tensor:
        g = Generator().manual_seed(self.seed)
        if self.values == "labels":
            labels = torch.randint(max(self.classes, 1), shape, generator=g)
            if self.odd is not None:
                labels[torch.rand(shape, generator=g) < 0.4] = self.odd
            return labels.to(self.dtype)
        integers = not (self.dtype.is_floating_point or self.dtype.is_complex)
        values = "grid" if integers and self.values != "mask" else self.values
        return VALUES[values](shape, g).to(self.dtype)

    def __repr__(self) -> str:
        """Without what is as usual: a falsifying example should fit on a line."""
        changed = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if value != getattr(Made, name, ...) and name != "shape"
        ]
        return f"Made({', '.join([repr(self.shape), *changed])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print it so in hypothesis, too, which spells out dataclasses."""
        printer.text(repr(self))


def _laid_out(draw: Callable[..., Tensor], shape: tuple[int, ...], layout: str) -> Tensor:
    if layout == "transposed" and len(shape) > 1:
        return draw(*shape[:-2], shape[-1], shape[-2]).mT
    if layout == "channels_last" and len(shape) == 4:
        n, c, h, w = shape
        return draw(n, h, w, c).permute(0, 3, 1, 2)
    if layout == "strided" and shape:
        return draw(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "offset":
        count = torch.Size(shape).numel()
        return draw(count + 1)[1:].view(shape)
    if layout == "expanded" and shape:
        return draw(min(shape[0], 1), *shape[1:]).expand(shape)
    if layout == "overlap" and len(shape) > 1 and 0 not in shape:
        window = [1] * len(shape)
        return draw(sum(shape)).as_strided(shape, window)
    return draw(*shape)


seeds = integers(0, 2**16)
layouts = sampled_from(("contiguous",) * 6 + LAYOUTS)
float_dtypes = sampled_from(
    (torch.float32,) * 5 + (torch.float64,) * 2 + (torch.bfloat16, torch.float16)
)
other_dtypes = sampled_from(
    (torch.int64, torch.float64, torch.float16, torch.int32, torch.uint8, torch.bool)
)
values = sampled_from(("normal",) * 4 + ("grid", "extreme", "huge", "zero"))
sizes = sampled_from((2, 3, 1, 4, 2, 3, 5, 0))


@st.composite
def shape_mistakes(draw: st.DrawFn, made: Made) -> Made:
    """Another number of dims, or another size of one."""
    shape = list(made.shape)
    kind = draw(sampled_from(("size", "more", "fewer", "scalar", "vector")))
    if kind == "size" and shape:
        shape[draw(integers(0, len(shape) - 1))] = draw(sizes)
    elif kind == "more":
        shape.insert(draw(integers(0, len(shape))), draw(sizes))
    elif kind == "fewer" and shape:
        del shape[draw(integers(0, len(shape) - 1))]
    elif kind == "scalar":
        shape = []
    else:
        shape = [draw(sizes)]
    return replace(made, shape=tuple(shape))


@st.composite
def mistakes(draw: st.DrawFn, argument: Made) -> Any:
    """What somebody might pass instead of ``argument`` by mistake; sometimes it still fits."""
    kind = draw(sampled_from(("shape", "shape", "shape", "dtype", "dtype", "device", "type")))
    if kind == "shape":
        return draw(shape_mistakes(argument))
    if kind == "dtype":
        dtype = draw(other_dtypes)
        may_require_grad = dtype.is_floating_point and argument.requires_grad
        return replace(argument, dtype=dtype, requires_grad=may_require_grad)
    if kind == "device":
        return replace(argument, device="meta")
    return draw(sampled_from(([1.0], None, 2.0)))
