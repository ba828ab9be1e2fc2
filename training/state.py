"""What training changes, and what therefore has to survive when a run is to continue."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import parallel
from training.clock import Stopwatch
from training.config import Config
from training.data import Data, TrainingBatches, steps_per_epoch
from training.optim import make_optimizer, make_schedule
from training.selection import Selection
from training.step_metrics import StepMetrics


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Training steps taken.
        history: Metrics of each epoch that has ended.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps taken and the history."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        self.step, self.history = state["step"], state["history"]


class GlobalGenerators:
    """PyTorch's global random generators, from which dropout draws, in every process."""

    def __init__(self, config: Config, device: torch.device) -> None:
        """Give each process but the first, which keeps its generators, numbers of its own."""
        self._device = device
        if not parallel.is_first():
            torch.manual_seed(config.seed + (parallel.rank() << 32))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the CPU's generator and the training device's, by process."""
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return {"processes": parallel.gather(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generators of this process; one that was not there keeps what it has."""
        if parallel.rank() >= len(state["processes"]):
            return
        own = state["processes"][parallel.rank()]
        torch.set_rng_state(own["cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self._device)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """Everything that training changes; the state of these parts is what a checkpoint holds.

    What is to survive a resume gets ``state_dict`` and ``load_state_dict`` and a field here, and
    nothing else has to know.
    """

    model: Module
    average: AveragedModel | None  # of the weights, where --ema wants one
    optimizer: Optimizer
    schedule: LRScheduler
    batches: TrainingBatches
    metrics: StepMetrics
    selection: Selection
    progress: Progress
    clock: Stopwatch
    generators: GlobalGenerators

    @property
    def tested(self) -> Module:
        """What is validated, tested and kept: the model, or the average of its weights."""
        return self.model if self.average is None else self.average.module

    def _parts(self) -> dict[str, Any]:
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part, by its name: tensors and plain values."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set every part to the state it had.

        Raises:
            ValueError: The parts are not those of this program, or the state is of other data.
        """
        parts = self._parts()
        if state.keys() != parts.keys():
            differing = ", ".join(sorted(state.keys() ^ parts.keys()))
            raise ValueError(f"the checkpoint is of another version of this program: {differing}")
        name = ""
        try:
            for name, part in parts.items():
                part.load_state_dict(state[name])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"the checkpoint's {name} does not fit: {error!r}") from error


@runtime_checkable
class FitsInputs(Protocol):
    """A model with weights that come from its inputs, not from chance or a gradient."""

    def fit_inputs(self, inputs: Tensor) -> None:
        """Set them; ``inputs`` are some thousands of normalised training inputs."""


def initial_state(
    config: Config, data: Data, model: Module, weights: Path, clock: Stopwatch
) -> TrainingState:
    """Return the state before the first step.

    Args:
        config: The settings.
        data: The data set.
        model: The model with its initial weights, on the data's device.
        weights: File for the selected weights.
        clock: Runs since the program began.
    """
    if isinstance(model, FitsInputs):
        model.fit_inputs(data.normalise(data.train.inputs[:5000]))
    average = None
    if config.ema:
        follow = get_ema_multi_avg_fn(config.ema)
        average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    optimizer = make_optimizer(config, model)
    return TrainingState(
        model=model,
        average=average,
        optimizer=optimizer,
        schedule=make_schedule(config, optimizer, config.epochs * steps_per_epoch(config, data)),
        batches=TrainingBatches(config, data),
        metrics=StepMetrics(model),
        selection=Selection(weights, last=config.select == "last"),
        progress=Progress(),
        clock=clock,
        generators=GlobalGenerators(config, data.device),
    )
