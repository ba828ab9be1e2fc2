"""A sweep over settings: what is tried, who tries it, and what came of it.

Optuna keeps the settings to try in a database, which any number of processes may work on; the runs
keep their results in their own folders. So nothing is lost with a process: its setting is handed
out again once its heartbeat stops, finished runs are not repeated, and an unfinished one resumes
from its last checkpoint.
"""

import contextlib
import itertools
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, get_type_hints

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from training import report
from training.cli import parse_args
from training.config import Config, flag
from training.lock import is_free

HEARTBEAT = 10  # seconds between two signs of life of a process
STOPPED = (130, 143)  # exit codes of a run that was told to stop

Run = Callable[[Sequence[str]], int]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Settings:
    """The flags of a sweep.

    Attributes:
        fixed: Flags that all runs share.
        swept: What the others are drawn from, by the name of the setting.
    """

    fixed: tuple[str, ...]
    swept: dict[str, Distribution]

    @property
    def name(self) -> str:
        """The data set, the model and what is swept."""
        config = self.config(next(self.grid()))
        return "-".join([config.dataset, config.model, *self.swept])

    @property
    def ranges(self) -> list[str]:
        """Names of the settings that have a range instead of values."""
        return [k for k, d in self.swept.items() if not isinstance(d, CategoricalDistribution)]

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations of values; of a range, both ends."""
        values = [
            d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)
            for d in self.swept.values()
        ]
        for combination in itertools.product(*values):
            yield dict(zip(self.swept, combination, strict=True))

    def flags(self, values: dict[str, Any]) -> list[str]:
        """The command line of train.py for one combination."""
        return [*self.fixed, *(word for k, v in values.items() for word in (flag(k), str(v)))]

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration of one combination.

        Raises:
            ValueError: The values do not go together.
        """
        return parse_args(self.flags(values))


def parse_settings(flags: Sequence[str]) -> Settings:
    """Tell the flags with several values from the others.

    Args:
        flags: Command-line words after the sweep's own options.

    Raises:
        ValueError: Nothing is swept, a range is not one, or a combination is not valid.
        SystemExit: train.py does not know a flag or value (code 2, message printed).
    """
    types = get_type_hints(Config)
    fixed: list[str] = []
    swept: dict[str, Distribution] = {}
    for name, words in _by_flag(flags):
        several = len(words) > 1 and types.get(name) != tuple[int, ...]
        if several or (words and _RANGE.fullmatch(words[0])):
            swept[name] = _distribution(name, words)
        else:
            fixed += [flag(name), *words]
    if not swept:
        raise ValueError("nothing is swept: give a flag several values, as in --lr 0.01 0.1")
    for name in ("seed", "run_dir", "resume", "config"):
        if name in swept or flag(name) in fixed:
            raise ValueError(f"a sweep chooses {flag(name)} itself; leave it out")
    settings = Settings(tuple(fixed), swept)
    for values in settings.grid():
        settings.config(values)
    return settings


_RANGE = re.compile(r"([^:]+):([^:]+)")


def _by_flag(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Group words by the flag before them; negative numbers are values."""
    known = {field.name for field in fields(Config)}
    name, values = "", list[str]()
    for word in words:
        if word.startswith("--"):
            if name:
                yield name, values
            given, _, value = word.removeprefix("--").partition("=")
            name, values = given.replace("-", "_"), [value] if value else []
            if name.removeprefix("no_") not in known:
                raise ValueError(f"train.py has no flag --{given}; see python train.py --help")
        elif name:
            values.append(word)
        else:
            raise ValueError(f"expected a flag before {word!r}")
    if name:
        yield name, values


def _distribution(name: str, words: list[str]) -> Distribution:
    found = _RANGE.fullmatch(words[0])
    if not found:
        return CategoricalDistribution([_number(word) for word in words])
    try:
        low, high = (_number(end) for end in found.groups())
        if len(words) > 1 or isinstance(low, str) or isinstance(high, str) or not low < high:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{flag(name)} {' '.join(words)}: a range is two numbers low:high, low < high"
        ) from None
    log = low > 0 and high >= 10 * low
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def show(value: Any) -> str:
    """Return the value of a setting to be read."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Setting:
    """What came of one setting.

    Attributes:
        values: Of the swept settings.
        runs: The contents of metrics.json of its finished runs, one a seed.
    """

    values: dict[str, Any]
    runs: list[dict[str, Any]]

    def of(self, metric: str) -> list[float]:
        """One metric of every run."""
        return [run[metric] for run in self.runs]


class _StoppedError(Exception):
    """A run was told to stop."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class Study:
    """A sweep, shared with whoever else works on it."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        seeds: int,
        sampler: str,
        trials: int | None,
        storage: str | None = None,
    ) -> None:
        """Create the sweep, or join it if it exists.

        Args:
            settings: What is tried.
            directory: Where the runs go.
            seeds: Runs of each setting.
            sampler: ``"grid"`` tries every combination, ``"tpe"`` where it expects the best.
            trials: Number of settings that tpe tries.
            storage: URL of the database.

        Raises:
            ValueError: The options do not go together, or another sweep is in the way.
            OSError: The directory cannot be created, or the database not be used.
        """
        if (sampler == "tpe") != (trials is not None):
            raise ValueError("--trials N belongs to --sampler tpe, and tpe needs it")
        if sampler == "grid" and settings.ranges:
            raise ValueError(f"{flag(settings.ranges[0])} has a range: that needs --sampler tpe")
        directory.mkdir(parents=True, exist_ok=True)
        self._storage = storage = storage or f"sqlite:///{directory / 'study.db'}"
        self._settings, self._directory, self._seeds = settings, directory, seeds
        self._grid, self._trials = sampler == "grid", trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with _experiments_allowed(), _database(storage):
            self._study = optuna.create_study(
                study_name=directory.name,
                storage=optuna.storages.RDBStorage(
                    storage,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=3 * HEARTBEAT,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                ),
                # A setting that another process is trying counts as a bad one, so that two differ.
                sampler=optuna.samplers.TPESampler(constant_liar=True),
                direction="maximize",
                load_if_exists=True,
            )
        self._claim(
            {
                "flags that are fixed": " ".join(settings.fixed) or "none",
                "swept": ", ".join(f"{k} over {_shown(d)}" for k, d in settings.swept.items()),
                "seeds": seeds,
            }
        )
        if self._grid:
            for values in settings.grid():
                self._study.enqueue_trial(values, user_attrs=_PLANNED, skip_if_exists=True)

    def _claim(self, plan: dict[str, Any]) -> None:
        before = self._study.user_attrs.get("plan")
        if before is None:
            self._study.set_user_attr("plan", plan)
        elif before != plan:
            differing = [key for key in plan if plan[key] != before[key]]
            raise ValueError(
                f"{self._directory} holds another sweep: "
                + "; ".join(f"{k}: {before[k]}, not {plan[k]}" for k in differing)
                + ". Choose another --sweep-dir"
            )

    def work(self, run: Run) -> int:
        """Train until everything has been tried, by this process or others.

        Args:
            run: Takes command-line arguments of train.py and returns the exit code.

        Returns:
            0, or the exit code of a run that was told to stop.

        Raises:
            OSError: The database is damaged, or the disk is full.
        """
        with _experiments_allowed(), _database(self._storage):
            while self._remaining():
                optuna.storages.fail_stale_trials(self._study)
                if not self._available():
                    time.sleep(1)  # others work on what is left, or their heartbeat has stopped
                    continue
                try:
                    self._study.optimize(lambda trial: self._try(trial, run), n_trials=1)
                except _StoppedError as stopped:
                    print(f"the sweep in {self._directory} continues by the same command")
                    return stopped.code
        return 0

    def results(self) -> list[Setting]:
        """What came of each setting with finished runs, the best mean validation accuracy first.

        Raises:
            ValueError: The metrics of a run are damaged.
            OSError: The database or the metrics cannot be read.
        """
        with _database(self._storage):
            trials = self._study.get_trials(states=(TrialState.COMPLETE,))
        trials.sort(key=lambda trial: -(trial.value or 0.0))
        settings = (Setting(trial.params, self._metrics(trial.params)) for trial in trials)
        return [setting for setting in settings if setting.runs]

    def _count(self, *states: TrialState) -> int:
        return len(self._study.get_trials(deepcopy=False, states=states))

    def _remaining(self) -> bool:
        unfinished = self._count(TrialState.WAITING, TrialState.RUNNING)
        return unfinished > 0 or (not self._grid and self._count(*_DONE) < (self._trials or 0))

    def _available(self) -> bool:
        waiting = self._count(TrialState.WAITING)
        begun = self._count(*_DONE, TrialState.RUNNING)
        return waiting > 0 or (not self._grid and begun < (self._trials or 0))

    def _try(self, trial: Trial, run: Run) -> float:
        """Train one setting with every seed; return the mean validation accuracy."""
        if self._grid and trial.user_attrs != _PLANNED:
            raise optuna.TrialPruned  # another process was quicker with the last one
        values = {name: _suggest(trial, name, d) for name, d in self._settings.swept.items()}
        for seed in range(self._seeds):
            directory = self._run_dir(values, seed)
            while not is_free(directory):
                time.sleep(1)  # the process whose heartbeat had stopped goes on after all
            if self._is_finished(directory):
                continue
            print(f"\n{directory}", flush=True)
            if (directory / "config.yaml").exists():
                code = run(["--resume", str(directory)])
            else:
                flags = self._settings.flags(values)
                code = run([*flags, "--seed", str(seed), "--run-dir", str(directory)])
            if code in STOPPED:
                self._study.enqueue_trial(values, user_attrs=_PLANNED)
                raise _StoppedError(code)
            if code:  # it diverged, say, and has said so
                raise optuna.TrialPruned
        return fmean(run["validation_accuracy"] for run in self._metrics(values))

    def _run_dir(self, values: dict[str, Any], seed: int) -> Path:
        name = ",".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()
        )
        return self._directory / name.replace("/", "_") / f"seed={seed}"

    def _metrics(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        runs = (report.read(self._run_dir(values, seed)) for seed in range(self._seeds))
        return [metrics for metrics in runs if metrics]

    def _is_finished(self, directory: Path) -> bool:
        try:
            return bool(report.read(directory))
        except ValueError:  # damaged: the run reports again
            return False


_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_PLANNED = {"planned": True}  # on the settings of the grid


def _shown(distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " ".join(map(show, distribution.choices))
    return f"{distribution.low}:{distribution.high}"


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, int(low), int(high), log=log)
    return trial.suggest_float(name, low, high, log=log)


@contextlib.contextmanager
def _experiments_allowed() -> Iterator[None]:
    """Optuna calls its heartbeats experimental, as it has for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextlib.contextmanager
def _database(storage: str) -> Iterator[None]:
    """Turn what may be wrong with the database into an OSError that says what to do."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise OSError(
            f"the database {storage} cannot be used: {reason}. If it is damaged, delete it and "
            "give the same command again: finished runs are not repeated"
        ) from error
