"""The figures of a report, each a function from the results to a matplotlib figure, or None.

They are drawn narrow, to be read on a phone as they are and side by side on a wider screen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.curves import Curve
from training.pictures import kernel_images
from training.results import Results

WIDTH = 4.6  # inches
FOREGROUND = "#1c2024"  # text and axes, on a transparent background
TRAIN, VALIDATION = "#2f81d6", "#d9730d"
NAMED = 12  # up to so many classes or layers are told apart by name
POINTS = 200  # at most so many in a curve

STYLE: dict[Any, Any] = {
    "axes.edgecolor": FOREGROUND,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": FOREGROUND,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": FOREGROUND,
    "legend.frameon": False,
    "text.color": FOREGROUND,
    "text.parse_math": False,  # a class may be called anything
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
}


# Families with the characters that matplotlib's own font lacks; those installed are drawn with.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC",
    "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
    "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI", "Unifont",
)  # fmt: skip


def draw(results: Results) -> dict[str, Figure]:
    """Return the figures of ``results`` by name, without those that it has no data for."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        installed = set(font_manager.get_font_names())
        fallbacks = [name for name in FALLBACKS if name in installed]
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *fallbacks]
        drawn = {name: figure(results) for name, figure in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def loss(results: Results) -> Figure | None:
    """Training and validation loss against the training step."""
    figure, axes = _learning_curve(results, "loss")
    if axes is not None:
        _log_scale_if_wide(axes, [line.get_ydata() for line in axes.lines])
    return figure


def accuracy(results: Results) -> Figure | None:
    """Training and validation accuracy against the training step."""
    figure, axes = _learning_curve(results, "accuracy")
    if axes is not None:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _learning_curve(results: Results, metric: str) -> tuple[Figure | None, Axes | None]:
    train = results.curves.get(f"{metric}/train")
    validation = results.curves.get(f"{metric}/validation")
    if not train or not validation:
        return None, None
    figure, axes = _axes(0.7)
    bins = _binned(train)
    axes.fill_between(bins[0], bins[2], bins[3], color=TRAIN, alpha=0.2, linewidth=0)
    axes.plot(bins[0], bins[1], color=TRAIN, linewidth=1.2, label="training batches")
    marker = "o" if len(validation) <= 40 else None
    axes.plot(*zip(*validation, strict=True), color=VALIDATION, marker=marker, markersize=3,
              linewidth=1.5, label="validation set")  # fmt: skip
    kept = results.metrics.get("selected_epoch", 0)
    if 1 <= kept <= len(validation):
        axes.axvline(
            validation[kept - 1][0], color=FOREGROUND, linestyle=":", linewidth=1, label="kept"
        )
    axes.set(xlabel="step", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend()
    return figure, axes


def learning_rate(results: Results) -> Figure | None:
    """Learning rate against the training step."""
    curve = results.curves.get("schedule/learning_rate")
    if not curve:
        return None
    figure, axes = _axes(0.85)
    axes.plot(*_binned(curve)[:2], color=TRAIN, marker="." if len(curve) == 1 else None)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def gradient_norms(results: Results) -> Figure | None:
    """Norm of the gradient of each layer against the training step."""
    prefix = "norm/gradient/"
    curves = {
        name.removeprefix(prefix): curve
        for name, curve in results.curves.items()
        if name.startswith(prefix)
    }
    if not curves:
        return None
    figure, axes = _axes(0.85)
    colours = colormaps["turbo"](np.linspace(0.08, 0.92, len(curves)))
    for (name, curve), colour in zip(curves.items(), colours, strict=True):
        steps, means, _, _ = _binned(curve)
        marker = "." if len(steps) == 1 else None
        axes.plot(steps, means, color=colour, linewidth=1, marker=marker, label=name)
    _log_scale_if_wide(axes, [line.get_ydata() for line in axes.lines])
    axes.set(xlabel="step", ylabel="norm of the gradient")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(curves) <= NAMED:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    else:
        depth = ScalarMappable(Normalize(0.08, 0.92), colormaps["turbo"])
        depth.set_array(np.linspace(0, 1, 256))
        bar = figure.colorbar(depth, ax=axes, ticks=[0.08, 0.92])
        bar.ax.set_yticklabels([f"first\n({next(iter(curves))})", f"last\n({[*curves][-1]})"])
    return figure


def confusion_matrix(results: Results) -> Figure:
    """Counts of true and predicted classes, shaded by their share of the true class."""
    counts, classes = results.confusion, results.inputs.classes
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    figure, axes = _axes(1.0)
    axes.grid(visible=False)
    axes.imshow(share, cmap=_transparent_to(TRAIN), vmin=0, vmax=1, interpolation="none")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) <= NAMED:
        names = [_shortened(name) for name in classes]
        upright = max(map(len, names)) <= 3
        axes.set_xticks(range(len(classes)), names, rotation=0 if upright else 90)
        axes.set_yticks(range(len(classes)), names)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[i, j] > 0.85 else FOREGROUND
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure


def precision_recall(results: Results) -> Figure | None:
    """Precision against recall of each class against the others, as its threshold moves."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    average = {
        label: average_precision_score(results.labels == label, results.probabilities[:, label])
        for label in np.unique(results.labels).tolist()
    }
    if len(average) < 2:
        return None
    shown = sorted(sorted(average, key=average.__getitem__)[:NAMED])
    figure, axes = _axes(0.95)
    colours = colormaps["tab10" if len(shown) <= 10 else "tab20"](range(len(shown)))
    for label, colour in zip(shown, colours, strict=True):
        precision, recall, _ = precision_recall_curve(
            results.labels == label, results.probabilities[:, label]
        )
        kept = _thinned(recall)
        name = f"{average[label]:.3f} {_shortened(results.inputs.classes[label])}"
        axes.plot(recall[kept], precision[kept], color=colour, linewidth=1, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    title = "average precision"
    if len(shown) < len(average):
        title += f" of the {NAMED} hardest classes"
    columns = 3 if max(len(results.inputs.classes[label]) for label in shown) <= 10 else 2
    figure.legend(
        loc="outside lower center", ncols=columns, fontsize=8, title=title, title_fontsize=8
    )
    return figure


def mistakes(results: Results) -> Figure | None:
    """Images whose wrong class the model is most sure of, with true and predicted class."""
    rows = results.mistakes
    if not results.inputs.has_images or not rows:
        return None
    classes = results.inputs.classes
    captions = [
        f"{_shortened(classes[results.labels[row]])}\n"
        f"→ {_shortened(classes[results.predicted[row]], 11)} "
        f"{results.probabilities[row].max():.1%}"
        for row in rows
    ]
    images = results.raw[rows].cpu().permute(0, 2, 3, 1).numpy() / 255
    return _tiles(images, columns=4, gap=0.12, captions=captions)


def kernels(results: Results) -> Figure | None:
    """Kernels of the first layer."""
    if not results.inputs.has_images:
        return None
    images = kernel_images(results.model, results.inputs).cpu().permute(0, 2, 3, 1).numpy()
    return _tiles(images, columns=8, gap=0.1)


def _tiles(
    images: npt.NDArray[Any], columns: int, gap: float, captions: Sequence[str] = ()
) -> Figure:
    """Draw images ``(N, H, W, 1 or 3)`` from 0 to 1 side by side, each 1 wide."""
    columns = min(columns, len(images))
    height = images.shape[1] / images.shape[2]
    row_height = height + gap + (0.38 if captions else 0.0)
    rows = -(-len(images) // columns)
    full = columns * (1 + gap)
    # Few images do not become larger than four in a row would be.
    scale = WIDTH / max(full, 4 * (1 + gap))
    figure = Figure(figsize=(scale * full, scale * rows * row_height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    for i, image in enumerate(images.clip(0, 1)):
        left, top = (i % columns) * (1 + gap) + gap / 2, (i // columns) * row_height
        axes.imshow(
            np.broadcast_to(image, (*image.shape[:2], 3)),
            extent=(left, left + 1, top + height, top),
            interpolation="none",
        )
        if captions:
            axes.text(left, top + height + 0.04, captions[i], va="top", fontsize=7)
    axes.set(xlim=(0, full), ylim=(rows * row_height, 0), aspect="equal")
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    """Return a figure of ``height`` times its width, and its axes."""
    figure = Figure(figsize=(WIDTH, WIDTH * height), layout="constrained")
    return figure, figure.add_subplot()


def _binned(curve: Curve) -> npt.NDArray[np.float64]:
    """Return steps, means, least and largest values of at most ``POINTS`` pieces of a curve."""
    pieces = np.array_split(np.array(curve, dtype=float), min(POINTS, len(curve)))
    return np.array(
        [(p[:, 0].mean(), p[:, 1].mean(), p[:, 1].min(), p[:, 1].max()) for p in pieces]
    ).T


def _thinned(recall: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return at most ``POINTS`` places in a falling curve from 1 to 0, evenly spread over it."""
    return np.unique(np.searchsorted(-recall, -np.linspace(0, 1, POINTS)))


def _log_scale_if_wide(axes: Axes, values: list[Any]) -> None:
    """Make the vertical axis logarithmic where values differ more than tenfold."""
    every = np.concatenate([np.ravel(value) for value in values])
    every = every[every > 0]
    if len(every) and every.max() > 10 * every.min():
        axes.set_yscale("log")


def _transparent_to(colour: str) -> Colormap:
    return LinearSegmentedColormap.from_list("", [(*matplotlib.colors.to_rgb(colour), 0), colour])


def _shortened(name: str, length: int = 14) -> str:
    """Return the name without its middle if it is too long: often the ends tell names apart."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "loss": loss,
    "accuracy": accuracy,
    "learning_rate": learning_rate,
    "gradient_norms": gradient_norms,
    "confusion_matrix": confusion_matrix,
    "precision_recall": precision_recall,
    "mistakes": mistakes,
    "kernels": kernels,
}
