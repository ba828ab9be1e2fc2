"""Train a model of hand-written layers, look at it, and compare it with torch.nn.

    python train.py                                  # digits that ship with scikit-learn, seconds
    python train.py --dataset mnist                  # downloaded into ./data if missing
    python train.py --dataset mnist --model mlp
    python train.py --dataset cifar10 --backend torch
    python train.py --dataset folder --data-dir D    # D/train/CLASS/* and D/test/CLASS/*
    python train.py --config runs/NAME/config.yaml --seed 1
    python train.py --dataset cifar10 --help         # all settings, with this data set's defaults
    tensorboard --logdir runs

A run leaves report.html with its figures, weights.pt and metrics.json in its folder, and
TensorBoard's events; evaluate.py and predict.py read what it leaves.
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. A run that
# has its cores to itself becomes an eighth slower by it, one beside other programs several times
# faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from torch.nn import Module

from training import pictures, report
from training.atomic import atomic_write
from training.cli import parse_args
from training.config import Config
from training.curves import CurveLogger, read_curves
from training.data import Data, load, steps_per_epoch, training_batches
from training.evaluation import evaluate
from training.log import LOG_EVERY, ConsoleLogger, Logger, Loggers, StepMetrics, TensorBoardLogger
from training.optim import make_optimizer, make_schedule, weight_decay_loss
from training.results import Results
from training.setup import LAYERS, build_model, pick_device


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    try:
        return run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(args: Sequence[str]) -> int:
    """Read the settings, train, test and report; return the exit code."""
    started = time.perf_counter()
    try:
        config = parse_args(args)
        layers = LAYERS[config.backend]
        data = load(config, pick_device(config))
        model = build_model(config, data, layers)
        run_dir = make_run_dir(config)
        config.save(run_dir / "config.yaml")
        data.save(run_dir / "inputs.json")
    except (ValueError, OSError) as error:
        # A mistake in the settings or the data; the message says how to mend it.
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(report.heading(config, data, model), flush=True)
    logger = make_logger(config, data, run_dir)
    logger.log_settings(config.plain())
    try:
        history, selected = train(config, data, model, layers, logger, run_dir / "weights.pt")
        model.load_state_dict(torch.load(run_dir / "weights.pt", weights_only=True))
        test = evaluate(model, layers.CrossEntropyLoss(), data, data.test)
        seconds = time.perf_counter() - started
        metrics = report.metrics(config, data, model, history, selected, test, seconds)
        report.write(run_dir, metrics)
        results = Results(
            config=config,
            inputs=data,
            model=model,
            raw=data.test.inputs,
            evaluation=test,
            evaluated=f"test set of {config.dataset}",
            curves=read_curves(run_dir),
            metrics=metrics,
        )
        logger.log({"loss/test": test.loss, "accuracy/test": test.accuracy}, results.last_step)
        if config.report:
            from training import html_report  # imports for a second

            html_report.write(run_dir, results, logger)
    except (FloatingPointError, OSError) as error:  # diverged, or the disk is full
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        logger.close()
    print(report.summary(metrics))
    print(f"in {run_dir}: {', '.join(sorted(path.name for path in run_dir.iterdir()))}")
    return 0


def train(
    config: Config, data: Data, model: Module, layers: ModuleType, logger: Logger, weights: Path
) -> tuple[list[dict[str, float]], int]:
    """Train ``model`` and keep the weights to test in the file ``weights``.

    Args:
        config: The settings.
        data: The data set; its test split is not looked at.
        model: The model, on the data's device.
        layers: Namespace of the layers, for the loss.
        logger: Takes the metrics of every step and epoch.
        weights: File for the weights of the best epoch, or the last.

    Returns:
        The metrics of each epoch, and the number of the epoch whose weights were kept.

    Raises:
        FloatingPointError: Training diverged.
    """
    device = data.train.labels.device
    criterion = layers.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    validation_criterion = layers.CrossEntropyLoss()
    optimizer = make_optimizer(config, model)
    schedule = make_schedule(config, optimizer, config.epochs * steps_per_epoch(config, data))
    generator = torch.Generator(device).manual_seed(config.seed)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.amp)

    def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(data.normalise(inputs))
        return logits, criterion(logits, labels)

    if config.compile:
        forward = torch.compile(forward)
    step_metrics = StepMetrics(logger)
    history: list[dict[str, float]] = []
    best = (-1.0, 0.0)
    selected = step = 0

    log_pictures(config, data, model, logger)
    for epoch in range(1, config.epochs + 1):
        model.train()
        epoch_started = time.perf_counter()
        for inputs, labels in training_batches(config, data, generator):
            with autocast:
                logits, loss = forward(inputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            step_metrics.add(step, optimizer.param_groups[0]["lr"], loss, logits, labels)
            schedule.step()
            if step % LOG_EVERY == 0:
                step_metrics.flush()
                logger.log(penalty(config, model) | report.gradient_norms(model), step)
        train_loss, train_accuracy = step_metrics.epoch_means()
        seconds = time.perf_counter() - epoch_started

        validation = evaluate(model, validation_criterion, data, data.validation)
        history.append(
            {
                "schedule/epoch": epoch,
                "loss/train_epoch": train_loss,
                "accuracy/train_epoch": train_accuracy,
                **penalty(config, model),
                "loss/validation": validation.loss,
                "accuracy/validation": validation.accuracy,
                "speed/images_per_second": steps_per_epoch(config, data) * len(labels) / seconds,
            }
        )
        logger.log(history[-1], step)
        if data.has_images:
            logger.log_image("pictures/kernels", pictures.kernels(model, data), step)
        score = (validation.accuracy, -validation.loss)
        if config.select == "last" or score > best:
            best, selected = score, epoch
            with atomic_write(weights) as file:
                torch.save(model.state_dict(), file)
    return history, selected


def penalty(config: Config, model: Module) -> dict[str, float]:
    """Return the weight-decay loss as a metric, apart from the classification loss."""
    return {"loss/weight_decay": weight_decay_loss(model, config.weight_decay).item()}


def log_pictures(config: Config, data: Data, model: Module, logger: Logger) -> None:
    """Log the first training batch, augmented as it will be, and the untrained kernels."""
    if not data.has_images:
        return
    generator = torch.Generator(data.train.labels.device).manual_seed(config.seed)
    inputs, _ = next(training_batches(config, data, generator))
    logger.log_image("pictures/samples", pictures.samples(inputs), 0)
    logger.log_image("pictures/kernels", pictures.kernels(model, data), 0)


def make_run_dir(config: Config) -> Path:
    """Create and return the folder of the run.

    Raises:
        OSError: It cannot be created.
    """
    if config.run_dir is not None:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        return config.run_dir
    name = f"{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):  # runs started in the same second
        run_dir = Path("runs", name + suffix)
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_dir
    raise FileExistsError(f"{run_dir} exists; choose a --run-dir")


def make_logger(config: Config, data: Data, run_dir: Path) -> Logger:
    """Return a logger to the console, to the run's curves and, if wanted, to TensorBoard."""
    console = ConsoleLogger(config.epochs * steps_per_epoch(config, data))
    loggers = [console, CurveLogger(run_dir)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(run_dir))
    return Loggers(*loggers)


if __name__ == "__main__":
    sys.exit(main())
