"""Test a trained model again, on its own data or on other, and write the report.

    python evaluate.py runs/NAME                          # the test set: rewrites its report.html
    python evaluate.py runs/NAME --split validation
    python evaluate.py runs/NAME --dataset folder --data-dir D
    python evaluate.py runs/NAME --test-flip True         # mirror images averaged in

A report on anything but the run's own test goes into a folder of its own below the run's.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from training import html_report, report, run_folder
from training.adapt import adapt
from training.config import Config, DatasetName
from training.curves import read_curves
from training.data import load
from training.evaluation import evaluate
from training.restore import Trained, restore
from training.results import Results
from training.setup import LAYERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Test a trained model again and write the report."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run."""

    split: Literal["train", "validation", "test"] = "test"
    """Part of the data set: what was trained on, what was held out of it, or the test set."""

    dataset: DatasetName | None = None
    """Another data set than the run's; its classes are found by name."""

    data_dir: Path | None = None
    """Another directory of the data set than the run's."""

    test_flip: bool | None = None
    """Average the logits of each image and its mirror image; by default as the run did."""

    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1, ..."""

    output: Path | None = None
    """Folder for the report."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = tyro.cli(Arguments, args=args, description=__doc__)
    try:
        trained = restore(arguments.run_dir, arguments.device)
        results = test(trained, arguments)
        output = arguments.output or default_output(trained, arguments)
        page = html_report.write(output, results)
        if output != arguments.run_dir:
            report.write(output, report.tested(results))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table(results))
    print(f"report in {page}")
    return 0


def test(trained: Trained, arguments: Arguments) -> Results:
    """Return the results of the model on the data that the arguments name.

    Raises:
        ValueError: The data set is absent, damaged, or does not fit the model.
        OSError: Its files cannot be read.
        FloatingPointError: The model's loss is not finite.
    """
    config = data_config(trained, arguments)
    data = load(config, trained.inputs.device)
    split = adapt(getattr(data, arguments.split), data, trained.inputs)
    criterion = LAYERS[config.backend].CrossEntropyLoss()
    evaluation = evaluate(trained.model, criterion, trained.inputs, split, flip=config.test_flip)
    return Results(
        config=trained.config,
        inputs=trained.inputs,
        model=trained.model,
        raw=split.inputs,
        evaluation=evaluation,
        evaluated=evaluated(trained, arguments),
        curves=read_curves(arguments.run_dir),
        metrics=trained.metrics,
    )


def data_config(trained: Trained, arguments: Arguments) -> Config:
    """Return the run's settings, with the data set that the arguments name."""
    config, shape = trained.config, trained.inputs.input_shape
    flip = config.test_flip if arguments.test_flip is None else arguments.test_flip
    config = dataclasses.replace(
        config, data_dir=arguments.data_dir or config.data_dir, test_flip=flip
    )
    if is_own_data(trained.config, arguments):
        return config
    dataset = arguments.dataset or config.dataset
    # Image files come in any size.
    square = dataset == "folder" and len(shape) == 3 and shape[1] == shape[2]
    return dataclasses.replace(
        config,
        dataset=dataset,
        image_size=shape[1] if square else None,
        augment=False,
        limit_train=None,
    )


def is_own_data(config: Config, arguments: Arguments) -> bool:
    """Return whether the arguments name the data set of the run; it may have been moved.

    An image folder is another data set in another place.
    """
    if arguments.dataset not in (None, config.dataset):
        return False
    if config.dataset != "folder" or arguments.data_dir is None:
        return True
    return arguments.data_dir.resolve() == config.data_dir.resolve()


def evaluated(trained: Trained, arguments: Arguments) -> str:
    """Return what is tested, and how if not as the run did."""
    config, how = data_config(trained, arguments), ""
    if config.test_flip != trained.config.test_flip:
        how = " with mirror images" if config.test_flip else " without mirror images"
    return f"{arguments.split} set of {config.data_name}{how}"


def default_output(trained: Trained, arguments: Arguments) -> Path:
    """Return the run's own folder for its own test, else one below it."""
    as_the_run = arguments.test_flip in (None, trained.config.test_flip)
    if arguments.split == "test" and as_the_run and is_own_data(trained.config, arguments):
        return arguments.run_dir
    name = evaluated(trained, arguments).replace(" ", "-")
    return arguments.run_dir / run_folder.EVALUATIONS / name


if __name__ == "__main__":
    sys.exit(main())
