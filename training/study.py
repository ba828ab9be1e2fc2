"""A sweep over settings: what is tried, who tries it, and what came of it.

Optuna keeps the settings to try in a database, which any number of processes may work on; the runs
keep their results in their own folders. So nothing is lost with a process: its setting is handed
out again once its heartbeat stops, finished runs are not repeated, and an unfinished one resumes
from its last checkpoint.

A trial of Optuna's is one attempt at a setting. Attempts that end COMPLETE or, because training
diverged, PRUNED are the last of their setting; after a FAIL it is tried again: at once if the run
was told to stop or its process died, by the next start of the sweep if it ended with an error.
"""

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_type_hints
from urllib.parse import quote

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from training import report
from training.cli import parse_args
from training.config import Config, flag, words
from training.lock import is_free, one_at_a_time
from training.loop import DIVERGED
from training.run_folder import CONFIG

HEARTBEAT = 10  # seconds between two signs of life of a process
INTERRUPTED = 130  # exit code after Ctrl-C
STOPPED = (INTERRUPTED, 143)  # exit codes of a run that was told to stop

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
        line = list(self.fixed)
        for name, value in values.items():
            is_list = _TYPES[name] == _LIST
            line += words(name, [x for x in str(value).split(",") if x] if is_list else value)
        return line

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
        ValueError: Nothing is swept, a flag is given twice, a range is not one, or a combination is
            not valid.
        SystemExit: train.py does not know a flag or value (code 2, message printed).
    """
    fixed: list[str] = []
    swept: dict[str, Distribution] = {}
    given = _by_flag(flags)
    for name, values in given.items():
        on = name.removeprefix("no_")
        if _TYPES[on] is bool and values:
            both = f"{flag(on)} {flag(f'no_{on}')}"
            raise ValueError(f"{flag(name)} takes no value; to try it on and off, give {both}")
        if on in given and f"no_{on}" in given:
            swept[on] = CategoricalDistribution([True, False])
        elif _is_swept(name, values):
            swept[name] = _distribution(name, values)
        else:
            fixed += [flag(name), *values]
    if not swept:
        raise ValueError("nothing is swept: give a flag several values, as in --lr 0.01 0.1")
    for name in ("seed", "run_dir", "resume", "config"):
        if name in swept or flag(name) in fixed:
            raise ValueError(f"a sweep chooses {flag(name)} itself; leave it out")
    settings = Settings(tuple(fixed), swept)
    for combination in settings.grid():
        settings.config(combination)
    return settings


_TYPES = get_type_hints(Config)
_LIST = tuple[int, ...]
_FLAGS = {*_TYPES, *(f"no_{name}" for name, kind in _TYPES.items() if kind is bool)}


def _by_flag(line: Sequence[str]) -> dict[str, list[str]]:
    """Group words by the flag before them; negative numbers are values."""
    groups: dict[str, list[str]] = {}
    name = ""
    for word in line:
        if word.startswith("--"):
            given, _, value = word.removeprefix("--").partition("=")
            name = given.replace("-", "_")
            if name not in _FLAGS:
                raise ValueError(f"train.py has no flag --{given}; see python train.py --help")
            if name in groups:
                raise ValueError(f"--{given} is given twice; give all its values after one")
            groups[name] = [value] if value else []
        elif name:
            groups[name].append(word)
        else:
            raise ValueError(f"expected a flag before {word!r}")
    return groups


def _is_swept(name: str, values: Sequence[str]) -> bool:
    if _TYPES.get(name) == _LIST:  # several words without a comma are one list, as in train.py
        return any("," in value or ":" in value for value in values)
    return len(values) > 1 or _has_range(name, values)


def _has_range(name: str, values: Sequence[str]) -> bool:
    return not _is_text(name) and any(":" in value for value in values)


def _is_text(name: str) -> bool:
    return _TYPES.get(name) in (str, Path)


def _distribution(name: str, values: Sequence[str]) -> Distribution:
    if not _has_range(name, values):
        return CategoricalDistribution(values if _is_text(name) else list(map(_number, values)))
    try:
        low, high = map(_number, " ".join(values).split(":"))
        if isinstance(low, str) or isinstance(high, str) or not low < high:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{flag(name)} {' '.join(values)}: a range is two numbers low:high, low < high"
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
    """Return the value of a setting to be read: one of a range to six digits."""
    exact = str(value)
    return f"{value:.6g}" if isinstance(value, float) and len(exact) > 10 else exact


@dataclass(frozen=True)
class Setting:
    """What came of one setting.

    Attributes:
        values: Of the swept settings.
        runs: The contents of metrics.json of its finished runs, one a seed.
        failure: ``"diverged"`` or ``"failed"``, if a run did; else empty.
    """

    values: dict[str, Any]
    runs: list[dict[str, Any]]
    failure: str = ""

    def of(self, metric: str) -> list[float]:
        """One metric of every run."""
        return [run[metric] for run in self.runs]


class _StoppedError(Exception):
    """A run was told to stop."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class _FailedError(Exception):
    """A run ended with an error that may be mended, and has said so."""


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
            ValueError: The options are not valid together, or another sweep is in the way.
            OSError: The directory cannot be created, or the database not be used.
        """
        if (sampler == "tpe") != (trials is not None):
            raise ValueError("--trials N belongs to --sampler tpe, and tpe needs it")
        if trials is not None and trials < 1:
            raise ValueError(f"--trials must be at least 1, got {trials}")
        if sampler == "grid" and settings.ranges:
            raise ValueError(f"{flag(settings.ranges[0])} has a range: that needs --sampler tpe")
        directory.mkdir(parents=True, exist_ok=True)
        self._storage = storage = storage or f"sqlite:///{directory / 'study.db'}"
        self._settings, self._directory, self._seeds = settings, directory, seeds
        self._grid, self._trials = sampler == "grid", trials
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a FAIL is a warning to it
        # Of two processes that begin at once, one would find half a database.
        with one_at_a_time(directory), _experiments_allowed(), _database(storage):
            self._study = optuna.create_study(
                study_name=directory.name,
                storage=self._connect(storage),
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
            self._plan()

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

    def _plan(self) -> None:
        """Enqueue every setting that no attempt has settled, nor is about to."""
        trials = self._study.get_trials(deepcopy=False)
        settled = [self._setting(trial) for trial in trials if trial.state != TrialState.FAIL]
        for values in self._settings.grid() if self._grid else map(self._setting, trials):
            if values and values not in settled:
                _enqueue(self._study, values)
                settled.append(values)

    def _try_again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Hand out the setting of a trial whose process has died."""
        if values := self._setting(trial):
            _enqueue(study, values)

    def _setting(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return the setting of a trial; empty if it ended before all of it was drawn."""
        values = {**trial.user_attrs.get(_PLANNED, {}), **trial.params}
        return values if values.keys() == self._settings.swept.keys() else {}

    def work(self, run: Run) -> int:
        """Train until everything has been tried, by this process or others.

        Args:
            run: Takes command-line arguments of train.py and returns the exit code.

        Returns:
            0, or the exit code of a run that was told to stop.

        Raises:
            OSError: The database is damaged, or the disk is full.
        """
        try:
            with _experiments_allowed(), _database(self._storage):
                self._work(run)
        except (_StoppedError, KeyboardInterrupt) as stopped:
            print(f"the sweep in {self._directory} continues by the same command")
            return stopped.code if isinstance(stopped, _StoppedError) else INTERRUPTED
        return 0

    def _connect(self, storage: str) -> optuna.storages.RDBStorage:
        try:
            return optuna.storages.RDBStorage(
                storage,
                heartbeat_interval=HEARTBEAT,
                grace_period=3 * HEARTBEAT,
                heartbeat_stale_trial_callback=self._try_again,
            )
        except ArgumentError as error:
            raise ValueError(
                f"--storage {storage} is no address of a database, such as sqlite:///study.db"
            ) from error
        except ImportError as error:
            raise ValueError(
                f"--storage {storage} needs a package that is not installed: {error.__cause__}"
            ) from error

    def _work(self, run: Run) -> None:
        while self._remaining():
            optuna.storages.fail_stale_trials(self._study)
            if not self._available():
                time.sleep(1)  # others work on what is left, or their heartbeat has stopped
                continue
            self._study.optimize(
                lambda trial: self._try(trial, run), n_trials=1, catch=(_FailedError,)
            )

    def results(self) -> list[Setting]:
        """What came of each setting, the best mean validation accuracy first, failures last.

        Raises:
            ValueError: The metrics of a run are damaged.
            OSError: The database or the metrics cannot be read.
        """
        with _database(self._storage):
            trials = self._study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        complete.sort(key=lambda trial: -(trial.value or 0.0))
        failed = [trial for trial in reversed(trials) if _FAILURE in trial.user_attrs]
        settings: dict[frozenset[tuple[str, Any]], Setting] = {}
        for trial in (*complete, *failed):  # the sampler may have drawn a setting twice
            key = frozenset(trial.params.items())
            if key not in settings:
                failure = trial.user_attrs.get(_FAILURE, "")
                settings[key] = Setting(trial.params, self._metrics(trial.params), failure)
        return [setting for setting in settings.values() if setting.runs or setting.failure]

    def _count(self, *states: TrialState) -> int:
        return len(self._study.get_trials(deepcopy=False, states=states))

    def _remaining(self) -> bool:
        return self._available() or self._count(TrialState.RUNNING) > 0

    def _available(self) -> bool:
        return self._count(TrialState.WAITING) > 0 or self._drawn() < (self._trials or 0)

    def _drawn(self) -> int:
        """Return how many settings the sampler has drawn, further attempts at them apart."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(
            _PLANNED not in trial.user_attrs
            and (trial.state != TrialState.FAIL or bool(self._setting(trial)))
            for trial in trials
        )

    def _try(self, trial: Trial, run: Run) -> float:
        """Train one setting with every seed; return the mean validation accuracy."""
        if self._grid and _PLANNED not in trial.user_attrs:
            raise optuna.TrialPruned  # another process was quicker with the last one
        values = {name: _suggest(trial, name, d) for name, d in self._settings.swept.items()}
        code = self._train(values, run)
        if code in STOPPED:
            _enqueue(self._study, values)
            raise _StoppedError(code)
        if code == DIVERGED:
            trial.set_user_attr(_FAILURE, "diverged")
            raise optuna.TrialPruned
        if code:
            trial.set_user_attr(_FAILURE, "failed")
            raise _FailedError
        return fmean(run["validation_accuracy"] for run in self._metrics(values))

    def _train(self, values: dict[str, Any], run: Run) -> int:
        """Train one setting with every seed; return 0, or the exit code of the run that failed."""
        for seed in range(self._seeds):
            directory = self._run_dir(values, seed)
            while not is_free(directory):
                time.sleep(1)  # the process whose heartbeat had stopped goes on after all
            if self._is_finished(directory):
                continue
            print(f"\n{directory}", flush=True)
            if (directory / CONFIG).exists():
                args = ["--resume", str(directory)]
            else:
                flags = self._settings.flags(values)
                args = [*flags, "--seed", str(seed), "--run-dir", str(directory)]
            try:
                code = run(args)
            except KeyboardInterrupt:  # the second one, which it does not wait for
                code = INTERRUPTED
            if code:
                return code
        return 0

    def _run_dir(self, values: dict[str, Any], seed: int) -> Path:
        name = ",".join(f"{k}={quote(str(v), safe=' ,:+')}" for k, v in values.items())
        return self._directory / name / f"seed={seed}"

    def _metrics(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        runs = (report.read(self._run_dir(values, seed)) for seed in range(self._seeds))
        return [metrics for metrics in runs if metrics]

    def _is_finished(self, directory: Path) -> bool:
        try:
            return bool(report.read(directory))
        except ValueError:  # damaged: the run reports again
            return False


# Attributes of trials.
_PLANNED = "planned"  # a setting of the grid, or another attempt at one that the sampler drew
_FAILURE = "failure"


def _enqueue(study: optuna.Study, values: dict[str, Any]) -> None:
    study.enqueue_trial(values, user_attrs={_PLANNED: values})


def _shown(distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return " ".join(map(str, distribution.choices))
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
