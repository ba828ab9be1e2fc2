"""Train a model of hand-written layers, look at it, and compare it with torch.nn.

    python train.py                                  # digits that ship with scikit-learn
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

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. A run that
# has its cores to itself becomes an eighth slower by it, one beside other programs several times
# faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from training import parallel, report, run_folder
from training.checkpoint import Checkpoints
from training.cli import parse_args
from training.clock import Stopwatch
from training.config import Config
from training.curves import CurveLogger, read_curves
from training.data import Data, load, steps_per_epoch
from training.evaluation import evaluate
from training.lock import exclusive
from training.log import ConsoleLogger, Logger, Loggers, TensorBoardLogger
from training.loop import DIVERGED, complete, train
from training.results import Results
from training.setup import LAYERS, build_model, check_batch_size, pick_device
from training.signals import StopAtOnce, Stopped
from training.state import TrainingState, initial_state


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
    with StopAtOnce(), contextlib.ExitStack() as held:
        try:
            begun = prepare(args, held)
        except Stopped as stop:
            print(
                "stopped before training began; the same command starts it again", file=sys.stderr
            )
            return stop.code
        except (ValueError, OSError) as error:
            # A mistake in the settings or the data; the message says how to mend it.
            print(f"error: {error}", file=sys.stderr)
            return 1
        try:
            execute(begun)
        except Stopped as stop:
            if parallel.is_first():
                print(
                    f"stopped after step {begun.state.progress.step} of {begun.steps}; "
                    f"go on with: {resume_command(begun.directory)}",
                    file=sys.stderr,
                )
            return stop.code
        except (FloatingPointError, OSError) as error:  # diverged, or the disk is full
            last, diverged = begun.checkpoints.newest, isinstance(error, FloatingPointError)
            # The same settings would diverge again, and a resume takes no others.
            resumable = last and not diverged
            print(
                f"error: {error}. Last good checkpoint: "
                f"{last or 'none, it had not come to that'}"
                + (f". Go on from it with: {resume_command(begun.directory)}" if resumable else ""),
                file=sys.stderr,
            )
            return DIVERGED if diverged else 1
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """All that a run needs.

    Attributes:
        config: The settings.
        data: The data set.
        state: The model, and what else training changes.
        directory: Folder of the run, held by this process.
        checkpoints: The checkpoints in it.
        resumed: Whether another process began it.
        clock: Runs since this process began it.
    """

    config: Config
    data: Data
    state: TrainingState
    directory: Path
    checkpoints: Checkpoints
    resumed: bool
    clock: Stopwatch

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.config.epochs * steps_per_epoch(self.config, self.data)


def prepare(args: Sequence[str], held: contextlib.ExitStack) -> Run:
    """Return the run that the arguments ask for, new or as its last checkpoint has it.

    Args:
        args: Arguments without the program's name.
        held: Takes what keeps other processes out of its folder.

    Raises:
        ValueError: The settings, the data or the folder are not fit for it.
        OSError: A file cannot be read or written.
    """
    clock = Stopwatch()
    config = parse_args(args)
    if parallel.may_restart() and not (config.run_dir or config.resume):
        raise ValueError("--max-restarts needs a --run-dir, to go on in after a restart")
    resumed = config.resume or (config.run_dir if was_begun(config) else None)
    if resumed:
        parallel.by_first(lambda: held.enter_context(exclusive(resumed)))
    saved = Checkpoints(config, resumed).load() if resumed else None
    data = load(config, pick_device(config))
    model = build_model(config, data, LAYERS[config.backend])
    check_batch_size(config, data, model)
    directory = resumed or parallel.by_first(lambda: make_run_dir(config, held))
    state = initial_state(config, data, model, directory / run_folder.WEIGHTS, clock)
    if saved:
        state.load_state_dict(saved)
        if complete(config, state):
            clock.leave_out_start()
    if parallel.is_first():
        config.save(directory / run_folder.CONFIG)
        data.save(directory / run_folder.INPUTS)
        run_folder.clear_results(directory)
    checkpoints = Checkpoints(config, directory)
    return Run(config, data, state, directory, checkpoints, resumed is not None, clock)


def was_begun(config: Config) -> bool:
    """Return whether torchrun starts again what had come as far as a folder of its own."""
    folder = config.run_dir
    return parallel.was_restarted() and parallel.by_first(
        lambda: folder is not None and (folder / run_folder.CONFIG).exists()
    )


def execute(run: Run) -> None:
    """Train, test and report.

    Raises:
        Stopped: SIGINT or SIGTERM asked for it.
        FloatingPointError: Training diverged.
        OSError: A file cannot be written.
    """
    config, data, state = run.config, run.data, run.state
    print(report.heading(config, data, state.model), flush=True)
    step, steps = state.progress.step, run.steps
    if run.resumed:
        done = ": training is complete" if complete(config, state) else ""
        print(f"resuming {run.directory} after step {step} of {steps}{done}", flush=True)
    with contextlib.closing(make_logger(config, run.directory, steps, step)) as logger:
        logger.log_settings(config.plain())
        signal = train(config, data, LAYERS[config.backend], state, logger, run.checkpoints)
        if signal:
            raise Stopped(signal)
        if not parallel.is_first():
            return
        trained = len(state.progress.history)
        if trained < config.epochs:
            print(f"stopped after epoch {trained} of {config.epochs}: --patience {config.patience}")
        metrics = test(run, logger)
    print(report.summary(metrics))
    names = sorted(path.name for path in run.directory.iterdir())
    print(f"in {run.directory}: {', '.join(names)}")


def test(run: Run, logger: Logger) -> dict[str, Any]:
    """Test the selected weights and write the report; return the contents of metrics.json."""
    config, data, model = run.config, run.data, run.state.model
    selection = run.state.selection
    model.load_state_dict(selection.weights)
    criterion = LAYERS[config.backend].CrossEntropyLoss()
    evaluation = evaluate(model, criterion, data, data.test, flip=config.test_flip)
    history = run.state.progress.history
    metrics = report.metrics(
        config, data, model, history, selection.epoch, evaluation, run.clock.seconds
    )
    results = Results(
        config=config,
        inputs=data,
        model=model,
        raw=data.test.inputs,
        evaluation=evaluation,
        evaluated=f"test set of {config.data_name}",
        curves=read_curves(run.directory),
        metrics=metrics,
    )
    logger.log({"loss/test": evaluation.loss, "accuracy/test": evaluation.accuracy}, results.step)
    if config.report:
        from training import html_report  # imports for a second

        html_report.write(run.directory, results, logger)
    report.write(run.directory, metrics)  # last: it says that the run has ended
    return metrics


def resume_command(directory: Path) -> str:
    """Return the command that goes on with the run in ``directory``."""
    return f"python train.py --resume {directory}"


def make_run_dir(config: Config, held: contextlib.ExitStack) -> Path:
    """Create and return the folder of the run.

    Args:
        config: The settings.
        held: Takes what keeps other processes out of it.

    Raises:
        ValueError: Another process is running in it, or it holds a run that can be resumed.
        OSError: It cannot be created.
    """
    if config.run_dir is not None:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(exclusive(config.run_dir))
        checkpoints = Checkpoints(config, config.run_dir)
        if checkpoints.newest and not (config.run_dir / run_folder.METRICS).exists():
            raise ValueError(
                f"{config.run_dir} holds a run that has not ended. Go on with it by --resume "
                f"{config.run_dir}, delete it, or choose another --run-dir"
            )
        checkpoints.clear()
        run_folder.clear(config.run_dir)
        return config.run_dir
    name = f"{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):  # runs started in the same second
        run_dir = Path("runs", name + suffix)
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        held.enter_context(exclusive(run_dir))
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
