"""The report of a run: one HTML page that needs nothing beside it, and its figures as PNG."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from training import figures
from training.atomic import atomic_write
from training.config import flag
from training.layers import layer_table
from training.log import Logger
from training.rendering import to_png, to_svg, to_tensor
from training.results import Results, scores
from training.run_folder import FIGURES, PAGE, clear_figures


def write(directory: Path, results: Results, logger: Logger | None = None) -> Path:
    """Write the report of ``results`` into ``directory``.

    Args:
        directory: Where ``report.html`` and the folder ``figures`` go; made if missing.
        results: What to report.
        logger: Gets the same figures, and a precision-recall curve for each class, after the last
            step of training.

    Returns:
        The path of the page.

    Raises:
        OSError: The directory cannot be written to.
    """
    drawn = figures.draw(results)
    pictures = {name: to_png(figure) for name, figure in drawn.items()}
    clear_figures(directory)
    (directory / FIGURES).mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        with atomic_write(directory / FIGURES / f"{name}.png") as file:
            file.write(png)
    page = render(results, {name: to_svg(figure, name) for name, figure in drawn.items()})
    with atomic_write(directory / PAGE) as file:
        file.write(page.encode())
    if logger is not None:
        for name, png in pictures.items():
            logger.log_image(f"report/{name}", to_tensor(png), results.step)
        _log_precision_recall(results, logger)
    return directory / PAGE


def render(results: Results, svgs: dict[str, str]) -> str:
    """Return the page.

    Args:
        results: What to report.
        svgs: An ``<svg>`` element for each figure.
    """
    config = results.config
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=f"{config.model} on {config.data_name}",
        subtitle=_subtitle(results),
        evaluated=results.evaluated,
        facts=_facts(results),
        notes=_notes(results),
        figures={name: Markup(svg) for name, svg in svgs.items()},
        scores=scores(results.evaluation, results.inputs.classes),
        numbered=len(results.inputs.classes) > figures.NAMED,
        confusions=results.confusions,
        layers=layer_table(results.model, results.inputs),
        settings={
            "Command line": {
                flag(name): _setting(value)
                for name, value in config.plain().items()
                if name not in ("config", "resume", "run_dir")  # where, not what
            },
            "Data and machine": _surroundings(results),
        },
    )


def _subtitle(results: Results) -> str:
    layers = {
        "manual": "Layers of manual_ops.nn, with gradients derived and written by hand.",
        "torch": "Layers of torch.nn, for comparison.",
    }[results.config.backend]
    finished = results.metrics.get("finished")
    return f"{layers} Training ended {finished[:16].replace('T', ' ')}." if finished else layers


def _facts(results: Results) -> dict[str, str]:
    """Return the figures at the head of the page."""
    metrics = results.metrics
    facts = {
        "accuracy": f"{results.evaluation.accuracy:.2%}",
        "loss": f"{results.evaluation.loss:.4f}",
        "examples": f"{len(results.labels):,}",
        "parameters": f"{sum(p.numel() for p in results.model.parameters()):,}",
    }
    if metrics:
        memory = "resident" if metrics["device"] == "cpu" else "device"
        facts |= {
            "weights of epoch": f"{metrics['selected_epoch']} of {len(metrics['history'])}",
            "time": _duration(metrics["seconds"]),
            "training images/s": f"{metrics['images_per_second']:,.0f}",
            f"peak {memory} memory": f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB",
        }
    return facts


def _notes(results: Results) -> list[str]:
    """Return a sentence for each thing that a reader would miss."""
    notes = []
    if not results.metrics:
        notes.append("The run did not get to its end: its time and memory are not known.")
    if "loss/validation" not in results.curves:
        notes.append("The run left no curves of an epoch.")
    elif not any(name.startswith("norm/") for name in results.curves):
        notes.append("The run was too short for gradient norms, which only some steps log.")
    if not results.inputs.has_images:
        notes.append("The inputs are no images: there are no kernels or mistakes to look at.")
    if not results.confusions:
        notes.append("No example was misclassified.")
    absent = len(results.inputs.classes) - len(set(results.labels.tolist()))
    if absent:
        notes.append(f"{absent} of {len(results.inputs.classes)} classes have no examples here.")
    return notes


def _surroundings(results: Results) -> dict[str, str]:
    """Return what the settings do not say of the data and the machine."""
    inputs, metrics = results.inputs, results.metrics
    rows = {
        "input": "×".join(map(str, inputs.input_shape)),
        "classes": f"{len(inputs.classes):,}",
        "mean": _numbers(inputs.mean),
        "standard deviation": _numbers(inputs.std),
    }
    if metrics:
        rows |= {"device": metrics["device"], "torch": metrics["torch"]}
    return rows


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _log_precision_recall(results: Results, logger: Logger) -> None:
    """Log the curve of each class that has examples, against all others."""
    labels, probabilities = results.evaluation.labels.cpu(), results.evaluation.probabilities
    for label in labels.unique().tolist():
        name = f"precision_recall/{results.inputs.classes[label]}"
        hits = labels == label
        logger.log_precision_recall(name, hits, probabilities[:, label], results.step)
