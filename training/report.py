"""A run in numbers: what it prints, and metrics.json."""

import json
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import Module

from training import parallel
from training.atomic import atomic_write
from training.config import Config
from training.data import Data
from training.evaluation import Evaluation
from training.layers import layer_table
from training.memory import peak_memory
from training.results import Results, scores
from training.run_folder import METRICS


def heading(config: Config, data: Data, model: Module) -> str:
    """Return the printed description of a run: the data, and the model layer by layer."""
    lines = [
        f"{config.dataset}: {len(data.train):,} training, {len(data.validation):,} validation, "
        f"{len(data.test):,} test examples of {len(data.classes)} classes",
        f"{config.model} of {config.backend} layers on {data.device}:",
    ]
    layers = layer_table(model, data)
    width = max(len(layer.name) for layer in layers)
    lines += [
        f"  {layer.name:<{width}} {layer.kind:<12} {'x'.join(map(str, layer.output_size)):<12} "
        f"{f'{layer.parameters:>10,}' if layer.parameters else ''}".rstrip()
        for layer in layers
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    lines.append(f"  {'parameters':<{width + 26}} {total:>10,}")
    return "\n".join(lines)


def metrics(
    config: Config,
    data: Data,
    model: Module,
    history: list[dict[str, float]],
    selected: int,
    test: Evaluation,
    seconds: float,
) -> dict[str, Any]:
    """Return the contents of metrics.json: results, what they were measured on, and the history.

    Args:
        config: The settings.
        data: The data set.
        model: The tested model.
        history: Metrics of each epoch.
        selected: Number of the epoch whose weights were tested.
        test: Result on the test set.
        seconds: Time from reading the settings to the test.
    """
    test_scores = scores(test, data.classes)
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "per_class_accuracy": {
            name: row["recall"] if row["support"] else None
            for name, row in test_scores["classes"].items()
        },
        "test_scores": test_scores,
        "validation_accuracy": history[selected - 1]["accuracy/validation"],
        "selected_epoch": selected,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": config.epochs,
        "seconds": seconds,
        "images_per_second": fmean(epoch["speed/images_per_second"] for epoch in history),
        "peak_memory_bytes": peak_memory(data.device),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "dataset": config.dataset,
        "model": config.model,
        "backend": config.backend,
        "device": str(data.device),
        "processes": parallel.count(),
        "torch": torch.__version__,
        "mean": data.mean.flatten().tolist(),
        "std": data.std.flatten().tolist(),
        "history": history,
    }


def write(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json into ``run_dir``."""
    with atomic_write(run_dir / METRICS) as file:
        file.write(json.dumps(metrics, indent=2, allow_nan=False).encode() + b"\n")


def read(run_dir: Path) -> dict[str, Any]:
    """Return the contents of metrics.json in ``run_dir``, nothing if there is none.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    path = run_dir / METRICS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}). It is written again by: "
            f"python train.py --resume {run_dir}"
        ) from error


def tested(results: Results) -> dict[str, Any]:
    """Return the contents of metrics.json for a test that is not the run's own."""
    return {
        "evaluated": results.evaluated,
        "accuracy": results.evaluation.accuracy,
        "loss": results.evaluation.loss,
        "scores": scores(results.evaluation, results.inputs.classes),
    }


def table(results: Results) -> str:
    """Return the printed result of a test: precision, recall, F1 and support of each class."""
    ratios = scores(results.evaluation, results.inputs.classes)
    rows = ratios["classes"] | {
        "macro average": ratios["macro"],
        "weighted average": ratios["weighted"],
    }
    width = max(map(len, rows))
    lines = [f"{'':<{width}}  precision  recall      F1  support"]
    lines += [
        f"{name:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  "
        f"{row['support']:7,}"
        for name, row in rows.items()
    ]
    tested = results.evaluation
    lines.append(
        f"{results.evaluated}: accuracy {tested.accuracy:.2%}, loss {tested.loss:.4f}, "
        f"{len(results.labels):,} examples"
    )
    return "\n".join(lines)


def summary(metrics: dict[str, Any]) -> str:
    """Return the printed result: accuracy class by class and overall, loss and speed."""
    per_class = metrics["per_class_accuracy"]
    width = max(map(len, ["test set", *per_class]))
    lines = [
        f"{name:<{width}}  {'no examples' if accuracy is None else f'{accuracy:8.2%}'}"
        for name, accuracy in per_class.items()
    ]
    return "\n".join(
        [
            "",
            *lines,
            f"{'test set':<{width}}  {metrics['test_accuracy']:8.2%}  "
            f"loss {metrics['test_loss']:.4f}  (weights of epoch {metrics['selected_epoch']})",
            f"{metrics['seconds']:.1f} s, {metrics['images_per_second']:,.0f} images/s",
        ]
    )
