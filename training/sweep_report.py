"""The table and the figure of a sweep."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from training.atomic import atomic_write
from training.study import Setting, show

FILES = ("sweep.csv", "sweep.png", "study.db")
SHOWN = 8  # settings in the figure: more curves cannot be told apart


_Curve = np.ndarray[tuple[int], np.dtype[np.float64]]


def write_table(directory: Path, settings: Sequence[Setting]) -> None:
    """Write sweep.csv.

    Args:
        directory: Where to.
        settings: What came of each, in the order wanted.

    Raises:
        OSError: It cannot be written.
    """
    rows = [_row(setting) for setting in settings]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(directory / "sweep.csv") as file:
        file.write(lines.getvalue().encode())


def table(settings: Sequence[Setting]) -> str:
    """Return the printed table: the settings in the order given, failed ones as such."""
    names = list(settings[0].values)
    heads = [*names, "validation accuracy", "test accuracy", "seconds"]
    lines = [heads, *(_cells(_row(setting), names) for setting in settings)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ((c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    text = ["  ".join(cells).rstrip() for cells in aligned]
    seeds = max(len(setting.runs) for setting in settings)
    what = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join([f"\n{what}, best first" if seeds else "", *text])


def write_figure(directory: Path, settings: Sequence[Setting]) -> None:
    """Write sweep.png, the curves of the first settings that did not fail, if there are any.

    Args:
        directory: Where to.
        settings: What came of each, the best first.

    Raises:
        OSError: It cannot be written.
    """
    finished = [setting for setting in settings if not setting.failure]
    if finished:
        with atomic_write(directory / "sweep.png") as file:
            _figure(finished[:SHOWN]).savefig(file, format="png", dpi=120)


def _cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    values = [show(row[name]) for name in names]
    if row["outcome"] != "finished":
        return [*values, row["outcome"], "", ""]
    return [
        *values,
        _accuracy(row["validation_accuracy"], row["validation_std"]),
        _accuracy(row["test_accuracy"], row["test_std"]),
        f"{row['seconds']:.1f}",
    ]


def _accuracy(mean: float, deviation: float | None) -> str:
    return f"{mean:.2%}" if deviation is None else f"{mean:.2%} ± {deviation:.2%}"


def _row(setting: Setting) -> dict[str, Any]:
    return {**setting.values, **_means(setting), "outcome": setting.failure or "finished"}


def _means(setting: Setting) -> dict[str, Any]:
    """Return the columns of numbers; those of a failed setting are empty."""
    seeds = len(setting.runs)
    if setting.failure:
        empty = ("validation_accuracy", "validation_std", "test_accuracy", "test_std")
        return {**dict.fromkeys(empty, ""), "seeds": seeds, "seconds": ""}
    validation, test = setting.of("validation_accuracy"), setting.of("test_accuracy")
    return {
        "validation_accuracy": fmean(validation),
        "validation_std": _deviation(validation),
        "test_accuracy": fmean(test),
        "test_std": _deviation(test),
        "seeds": seeds,
        "seconds": fmean(setting.of("seconds")),
    }


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _figure(settings: Sequence[Setting]) -> Any:
    """Mean curves over the seeds, in a band of one standard deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("loss/validation", "accuracy/validation"), strict=True):
        for setting in settings:
            mean, spread = _band([[e[metric] for e in run["history"]] for run in setting.runs])
            epochs = np.arange(1, len(mean) + 1)
            label = ", ".join(f"{k} {show(v)}" for k, v in setting.values.items())
            axis.plot(epochs, mean, label=label)
            axis.fill_between(epochs, mean - spread, mean + spread, alpha=0.2)
        axis.set(xlabel="epoch", ylabel=f"validation {metric.split('/')[0]}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=8)
    return figure


def _band(curves: Sequence[Sequence[float]]) -> tuple[_Curve, _Curve]:
    """Return mean and standard deviation at each epoch, over the runs that came so far."""
    epochs = [[c[i] for c in curves if i < len(c)] for i in range(max(map(len, curves)))]
    spread = [_deviation(values) or 0.0 for values in epochs]
    return np.array([*map(fmean, epochs)]), np.array(spread)
