"""Train a model of hand-written layers, look at it, and compare it with torch.nn.

    python train.py                                  # digits that ship with scikit-learn, seconds
    python train.py --dataset mnist                  # downloaded into ./data if missing
    python train.py --dataset mnist --model mlp
    python train.py --dataset cifar10 --backend torch
    python train.py --dataset folder --data-dir D    # D/train/CLASS/* and D/test/CLASS/*
    python train.py --config runs/NAME/config.yaml --seed 1
    python train.py --resume runs/NAME               # go on with a run that was interrupted
    python train.py --dataset cifar10 --help         # all settings, with this data set's defaults
    tensorboard --logdir runs

A run leaves report.html with its figures, weights.pt and metrics.json in its folder, and
TensorBoard's events; evaluate.py and predict.py read what it leaves.
"""

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. A run that
# has its cores to itself becomes an eighth slower by it, one beside other programs several times
# faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from training import parallel, report
from training.checkpoint import Checkpoints
from training.cli import parse_args
from training.clock import Stopwatch
from training.config import Config
from training.curves import CurveLogger, read_curves
from training.data import load, steps_per_epoch
from training.evaluation import evaluate
from training.log import ConsoleLogger, Logger, Loggers, TensorBoardLogger
from training.loop import complete, train
from training.results import Results
from training.setup import LAYERS, build_model, pick_device
from training.state import initial_state


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    try:
        with parallel.process_group():
            return run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(args: Sequence[str]) -> int:
    """Read the settings, train, test and report; return the exit code."""
    clock = Stopwatch()
    try:
        config = parse_args(args)
        if parallel.may_restart() and not (config.run_dir or config.resume):
            raise ValueError("--max-restarts needs a --run-dir, to go on in after a restart")
        resumed = config.resume or (config.run_dir if parallel.was_restarted() else None)
        saved = Checkpoints(config, resumed).load() if resumed else None
        layers = LAYERS[config.backend]
        data = load(config, pick_device(config))
        model = build_model(config, data, layers)
        run_dir = resumed or parallel.by_first(lambda: make_run_dir(config))
        state = initial_state(config, data, model, run_dir / "weights.pt", clock)
        if saved:
            state.load_state_dict(saved)
        if parallel.is_first():
            config.save(run_dir / "config.yaml")
            data.save(run_dir / "inputs.json")
            (run_dir / report.FILE).unlink(missing_ok=True)  # there only when a run has ended
    except (ValueError, OSError) as error:
        # A mistake in the settings or the data; the message says how to mend it.
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(report.heading(config, data, model), flush=True)
    step, steps = state.progress.step, config.epochs * steps_per_epoch(config, data)
    if resumed:
        done = ": training is complete" if complete(config, state) else ""
        print(f"resuming {run_dir} after step {step} of {steps}{done}", flush=True)
    logger = make_logger(config, run_dir, steps, step)
    logger.log_settings(config.plain())
    checkpoints = Checkpoints(config, run_dir)
    try:
        signal = train(config, data, layers, state, logger, checkpoints)
        if signal and parallel.is_first():
            print(
                f"stopped after step {state.progress.step} of {steps}; "
                f"go on with: python train.py --resume {run_dir}",
                file=sys.stderr,
            )
        if signal or not parallel.is_first():
            return 128 + signal if signal else 0  # as shells have it
        model.load_state_dict(state.selection.weights)
        test = evaluate(model, layers.CrossEntropyLoss(), data, data.test, flip=config.test_flip)
        metrics = report.metrics(
            config, data, model, state.progress.history, state.selection.epoch, test, clock.seconds
        )
        report.write(run_dir, metrics)
        results = Results(
            config=config,
            inputs=data,
            model=model,
            raw=data.test.inputs,
            evaluation=test,
            evaluated=f"test set of {config.data_name}",
            curves=read_curves(run_dir),
            metrics=metrics,
        )
        logger.log({"loss/test": test.loss, "accuracy/test": test.accuracy}, results.step)
        if config.report:
            from training import html_report  # imports for a second

            html_report.write(run_dir, results, logger)
    except (FloatingPointError, OSError) as error:  # diverged, or the disk is full
        last = checkpoints.newest or "none, it had not come to that"
        print(f"error: {error}. Last good checkpoint: {last}", file=sys.stderr)
        return 1
    finally:
        logger.close()
    print(report.summary(metrics))
    print(f"in {run_dir}: {', '.join(sorted(path.name for path in run_dir.iterdir()))}")
    return 0


def make_run_dir(config: Config) -> Path:
    """Create and return the folder of the run.

    Raises:
        ValueError: It holds a run that can be resumed.
        OSError: It cannot be created.
    """
    if config.run_dir is not None:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(config, config.run_dir)
        if checkpoints.newest and not (config.run_dir / report.FILE).exists():
            raise ValueError(
                f"{config.run_dir} holds a run that has not ended. Go on with it by --resume "
                f"{config.run_dir}, delete it, or choose another --run-dir"
            )
        checkpoints.clear()
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


def make_logger(config: Config, run_dir: Path, steps: int, step: int) -> Logger:
    """Return a logger to the console, to the run's curves and, if wanted, to TensorBoard.

    All processes but the first get one that does nothing.

    Args:
        config: The settings.
        run_dir: Folder of the run.
        steps: Training steps of the whole run.
        step: Steps already taken; what a former process logged after them is dropped.
    """
    if not parallel.is_first():
        return Logger()
    purge_step = step + 1 if step else 0
    loggers = [ConsoleLogger(steps, step), CurveLogger(run_dir, purge_step)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, purge_step))
    return Loggers(*loggers)


if __name__ == "__main__":
    sys.exit(main())
