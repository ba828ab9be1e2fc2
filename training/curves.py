"""The metrics of a run as JSON lines in its folder: ``curves.jsonl``.

Each line is an object with ``step`` and the metrics logged after it. Lines are handed to the
operating system as they come, so that a killed run has the curves up to its end.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from training.atomic import atomic_write
from training.log import Logger
from training.run_folder import CURVES

Curve = list[tuple[int, float]]  # steps and values


class CurveLogger(Logger):
    """Writes metrics, but no images, as JSON lines; numbers that are not finite become null."""

    def __init__(self, directory: Path, purge_step: int = 0) -> None:
        """Open ``curves.jsonl`` in ``directory``.

        Args:
            directory: Folder of the run.
            purge_step: What a former run wrote from this step on is dropped, as by TensorBoard's
                ``SummaryWriter``; by default all of it.

        Raises:
            OSError: The file cannot be written.
        """
        path = directory / CURVES
        kept = [line for line in _lines(path) if line["step"] < purge_step]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)

    @override
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    @override
    def close(self) -> None:
        self._file.close()


def read_curves(directory: Path) -> dict[str, Curve]:
    """Return the curve of every metric that the run in ``directory`` logged.

    Returns:
        Steps and finite values by name of the metric; nothing if there is no ``curves.jsonl``.
    """
    curves: dict[str, Curve] = defaultdict(list)
    for line in _lines(directory / CURVES):
        step = line.pop("step")
        for name, value in line.items():
            if value is not None:
                curves[name].append((step, value))
    return dict(curves)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the intact lines: a machine that lost power may leave half a line, or zeros."""
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and "step" in content:
            yield content
