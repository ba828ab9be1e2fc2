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

SHOWN = 8  # settings in the figure: more curves cannot be told apart


def write_report(directory: Path, settings: Sequence[Setting]) -> str:
    """Write sweep.csv and sweep.png, and return the table to print.

    Args:
        directory: Where to.
        settings: Finished settings, the best first.
    """
    rows = [_row(setting) for setting in settings]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(directory / "sweep.csv") as file:
        file.write(lines.getvalue().encode())
    _figure(settings).savefig(directory / "sweep.png", dpi=120)
    names = list(settings[0].values)
    heads = [*names, "validation accuracy", "test accuracy", "seconds"]
    table = [heads, *(_cells(row, names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in table]
    seeds = len(settings[0].runs)
    heading = f"\nmean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}, best first"
    return "\n".join(
        [heading, *text, f"in {directory}: sweep.csv, sweep.png, study.db and the runs"]
    )


def _cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [
        *(show(row[name]) for name in names),
        f"{row['validation_accuracy']:.2%} ± {row['validation_std']:.2%}",
        f"{row['test_accuracy']:.2%} ± {row['test_std']:.2%}",
        f"{row['seconds']:.1f}",
    ]


def _row(setting: Setting) -> dict[str, Any]:
    validation, test = setting.of("validation_accuracy"), setting.of("test_accuracy")
    return {
        **setting.values,
        "validation_accuracy": fmean(validation),
        "validation_std": _deviation(validation),
        "test_accuracy": fmean(test),
        "test_std": _deviation(test),
        "seeds": len(setting.runs),
        "seconds": fmean(setting.of("seconds")),
    }


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _figure(settings: Sequence[Setting]) -> Any:
    """Mean curves over the seeds, in a band of one standard deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("loss/validation", "accuracy/validation"), strict=True):
        for setting in settings[:SHOWN]:
            curves = np.array([[e[metric] for e in run["history"]] for run in setting.runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            mean, spread = curves.mean(0), curves.std(0)
            label = ", ".join(f"{k} {show(v)}" for k, v in setting.values.items())
            axis.plot(epochs, mean, label=label)
            axis.fill_between(epochs, mean - spread, mean + spread, alpha=0.2)
        axis.set(xlabel="epoch", ylabel=f"validation {metric.split('/')[0]}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=8)
    return figure
