"""Train with several settings and seeds, and compare.

    python sweep.py --lr 0.001 0.003 0.01 0.03 --seeds 3
    python sweep.py --dataset fashion-mnist --optimizer sgd adamw --lr 0.003 0.03 --epochs 5
    python sweep.py --dataset mnist --sampler tpe --trials 20 --lr 1e-4:1e-1 --dropout 0:0.5
    tensorboard --logdir sweeps

Every flag of train.py may be given. One with several values is swept: by default over the grid of
all combinations; ``low:high`` is a range that the sampler tpe draws from (on a logarithmic scale if
it spans a factor of 10 or more). ``--batch-norm --no-batch-norm`` tries both; ``--hidden 16 32`` is
one value, two layers, and ``--hidden 16,32 64,64 128,`` are three. Each setting is trained once per
seed.

The same command continues a sweep that was interrupted; started again while it runs, also on
another machine that sees the same --storage and --sweep-dir, it shares the work. A sweep leaves
runs, sweep.csv, sweep.png and its Optuna study in its folder. If a setting fails, the exit code is
1; the same command tries it again, unless its training diverged.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import train
from training.study import INTERRUPTED, Setting, Study, parse_settings
from training.sweep_report import FILES, table, write_figure, write_table


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    try:
        return run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def parse_args(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the sweep's own options, and the flags that are train.py's."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting (default: 1)")
    parser.add_argument("--sampler", choices=("grid", "tpe"), default="grid")
    parser.add_argument("--trials", type=int, help="tpe: settings to try")
    parser.add_argument("--sweep-dir", type=Path, help="by default sweeps/DATASET-MODEL-FLAGS")
    parser.add_argument("--storage", help="database, by default sqlite:///SWEEP_DIR/study.db")
    return parser.parse_known_args(args)


def run(args: Sequence[str]) -> int:
    """Run the sweep and report; return the exit code."""
    options, flags = parse_args(args)
    try:
        if options.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
        settings = parse_settings(flags)
        sweep_dir = options.sweep_dir or Path("sweeps", settings.name)
        study = Study(
            settings, sweep_dir, options.seeds, options.sampler, options.trials, options.storage
        )
    except (ValueError, OSError) as error:
        return fail(error)
    try:
        code = study.work(train.run)
    except OSError as error:
        return fail(error)
    try:
        results = study.results()
        if results:
            report(sweep_dir, results)
    except (ValueError, OSError) as error:
        return fail(error)
    failed = [result.failure for result in results if result.failure]
    if not failed or code:
        return code
    again = len(failed) - failed.count("diverged")
    print(
        f"error: {len(failed)} of {len(results)} settings failed"
        + (f"; mend the cause, and the same command tries {again} of them again" if again else ""),
        file=sys.stderr,
    )
    return 1


def report(directory: Path, results: Sequence[Setting]) -> None:
    """Write and print what came of the sweep, the table before a figure can fail."""
    write_table(directory, results)
    print(table(results))
    write_figure(directory, results)
    names = [name for name in FILES if (directory / name).exists()]
    print(f"in {directory}: {', '.join(names)} and the runs")


def fail(error: Exception) -> int:
    """Print what was wrong; return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
