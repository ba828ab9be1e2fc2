"""The folder of a run: the names of what is written there, and how to take it away again."""

from contextlib import suppress
from pathlib import Path

from training.atomic import remove_unfinished

CONFIG = "config.yaml"
INPUTS = "inputs.json"
WEIGHTS = "weights.pt"
CURVES = "curves.jsonl"
EVENTS = "events.out.tfevents.*"  # TensorBoard adds time, machine and process
METRICS = "metrics.json"
PAGE = "report.html"
FIGURES = "figures"
EVALUATIONS = "evaluations"  # a folder with metrics and report for each


def clear(run_dir: Path) -> None:
    """Delete what a former run left, but for its checkpoints, and nothing else.

    Settings go last: until then the folder is that of the former run.

    Raises:
        OSError: A file cannot be deleted.
    """
    clear_results(run_dir)
    for evaluation in (run_dir / EVALUATIONS).glob("*/"):
        clear_results(evaluation)
        _remove_if_empty(evaluation)
    _remove_if_empty(run_dir / EVALUATIONS)
    remove_unfinished(run_dir)
    for pattern in (WEIGHTS, CURVES, EVENTS, INPUTS, CONFIG):
        for path in run_dir.glob(pattern):
            path.unlink()


def clear_results(directory: Path) -> None:
    """Delete metrics and report, which are there only when a run or an evaluation has ended.

    Raises:
        OSError: A file cannot be deleted.
    """
    (directory / METRICS).unlink(missing_ok=True)
    (directory / PAGE).unlink(missing_ok=True)
    clear_figures(directory)


def clear_figures(directory: Path) -> None:
    """Delete the figures of a report.

    Raises:
        OSError: A file cannot be deleted.
    """
    if (directory / FIGURES).exists():
        from training import figures  # imports for a second

        for name in figures.FIGURES:
            (directory / FIGURES / f"{name}.png").unlink(missing_ok=True)
        _remove_if_empty(directory / FIGURES)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
