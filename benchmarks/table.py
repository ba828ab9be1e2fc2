"""The outcome of a benchmark: lines in the terminal as they come, a file of JSON, a picture."""

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Comparison, geometric_mean


@dataclass(frozen=True)
class Row:
    """One line: times of ours and torch.nn's in seconds, their ratio, and the bytes both save."""

    name: str
    times: Comparison
    saved: int
    torch_saved: int

    def __str__(self) -> str:
        t, share = self.times, self.saved / max(self.torch_saved, 1)
        return (
            f"{self.name:40} {t.ours * 1e3:7.3f} ms {t.torch * 1e3:7.3f} ms  "
            f"{t.ratio:5.2f} ({t.low:4.2f}-{t.high:4.2f})  "
            f"{self.saved:>11,} / {self.torch_saved:,} = {share:.2f}"
        )


class Table:
    """Rows under a title; prints each as it is added, and their geometric mean at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Row] = []
        print(f"\n{title:40} {'ours':>10} {'torch.nn':>10}  ratio (quartiles)      saved bytes")

    def add(self, row: Row) -> None:
        """Print ``row`` and keep it."""
        self.rows.append(row)
        print(row, flush=True)

    def close(self) -> None:
        """Print the geometric mean of the ratios."""
        if self.rows:
            mean = geometric_mean([row.times.ratio for row in self.rows])
            print(f"{'geometric mean':40} {'':24} {mean:5.2f}", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every table of comparisons has."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios there, too")


def write(args: argparse.Namespace, command: str, tables: list[Table]) -> None:
    """Write and draw ``tables`` where the options say."""
    if args.json:
        content: dict[str, Any] = {
            "command": command,
            "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "tables": {table.title: [asdict(row) for row in table.rows] for table in tables},
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        draw(args.plot, command, tables)


def draw(path: Path, command: str, tables: list[Table]) -> None:
    """Draw a bar for each ratio with its quartiles, a panel for each table."""
    from matplotlib.figure import Figure

    longest = max(len(table.rows) for table in tables)
    figure = Figure(figsize=(5 * len(tables) + 2, 1.4 + 0.2 * longest), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for ax, table in zip(axes, tables, strict=True):
        ratios = [row.times.ratio for row in table.rows]
        errors = [
            [max(row.times.ratio - row.times.low, 0) for row in table.rows],
            [max(row.times.high - row.times.ratio, 0) for row in table.rows],
        ]
        places = range(len(table.rows))
        ax.barh(places, ratios, xerr=errors, color="#4878a8", ecolor="#888888", height=0.7)
        ax.axvline(1, color="black", linewidth=0.8)
        for place, ratio in zip(places, ratios, strict=True):
            ax.text(0.02, place, f"{ratio:.2f}", va="center", color="white", fontsize=7)
        ax.set_yticks(places, [row.name for row in table.rows], fontsize=7)
        ax.set_ylim(len(table.rows) - 0.4, -0.6)
        ax.set_title(table.title, fontsize=9)
        ax.set_xlabel("time over torch.nn's (quartiles)", fontsize=8)
    figure.suptitle(f"{command}, {torch.get_num_threads()} threads", fontsize=9)
    figure.savefig(path, dpi=110)
