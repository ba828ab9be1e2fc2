"""The training loop."""

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_

from training import parallel, pictures
from training.checkpoint import Checkpoints
from training.config import Config
from training.data import Data, TrainingBatches, steps_per_epoch
from training.evaluation import evaluate
from training.log import Logger
from training.optim import weight_decay_loss
from training.signals import StopSignals
from training.state import TrainingState
from training.step_metrics import LOG_EVERY

DIVERGED = 3  # exit code of a run that diverged, as it would again; other failures have 1
PICTURES = 10  # of the kernels in a run: TensorBoard shows no more


def train(
    config: Config,
    data: Data,
    layers: ModuleType,
    state: TrainingState,
    logger: Logger,
    checkpoints: Checkpoints,
) -> int:
    """Train from where ``state`` is until it is complete, or SIGINT or SIGTERM asks to stop.

    Either way the last step is in a checkpoint when the function returns.

    Args:
        config: The settings.
        data: The data set; its test split is not looked at.
        layers: Namespace of the layers, for the loss.
        state: The model and everything else that training changes.
        logger: Takes the metrics of every step and epoch.
        checkpoints: Takes the state from time to time.

    Returns:
        Number of the signal that ended training early, or 0.

    Raises:
        FloatingPointError: Training diverged.
        OSError: A file cannot be written.
    """
    model = state.model
    criterion = layers.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    autocast = torch.autocast(
        data.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    )

    network = parallel.distribute(model, layers, sync_batch_norm=config.sync_batch_norm)

    def forward(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(data.normalise(inputs))
        return logits, criterion(logits, labels)

    if config.compile:
        forward = torch.compile(forward)

    if state.progress.step == 0:
        log_pictures(config, data, model, logger)
        state.clock.lap()  # the first epoch begins here
    epoch_length = steps_per_epoch(config, data)
    model.train()
    with StopSignals() as stop:
        while not complete(config, state):
            step = state.progress.step + 1
            inputs, labels = next(state.batches)
            with autocast:
                logits, loss = forward(inputs, labels)
            state.optimizer.zero_grad()
            loss.backward()
            rate = state.optimizer.param_groups[0]["lr"]
            state.metrics.add(step, rate, loss, logits, labels)
            take_step(config, state)
            state.progress.step = step
            if step % LOG_EVERY == 0:
                state.metrics.flush(logger)
                logger.log(penalty(config, model), step)
            if step % epoch_length == 0:
                end_epoch(config, data, layers, state, logger)
                model.train()
            signal, due = parallel.highest(stop.received, checkpoints.due)
            if signal or due:
                save(state, logger, checkpoints)
            if signal:
                return signal
    save(state, logger, checkpoints)
    return 0


def take_step(config: Config, state: TrainingState) -> None:
    """Change the weights along their gradients, and what follows the weights."""
    if config.clip_norm is not None:
        clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.optimizer.step()
    state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.model)


def complete(config: Config, state: TrainingState) -> bool:
    """Return whether ``state`` has come to its last epoch, or has lost patience before it."""
    epochs = len(state.progress.history)
    if config.patience is not None and epochs - state.selection.best >= config.patience:
        return True
    return epochs >= config.epochs  # more, if a resume asks for fewer


def end_epoch(
    config: Config, data: Data, layers: ModuleType, state: TrainingState, logger: Logger
) -> None:
    """Validate, log the epoch and select weights."""
    loss, accuracy = state.metrics.epoch_means(logger)
    images = steps_per_epoch(config, data) * min(config.batch_size, len(data.train))
    speed = images / state.clock.lap()
    parallel.take_buffers_of_first(state.tested)
    validation = evaluate(
        state.tested, layers.CrossEntropyLoss(), data, data.validation, flip=config.test_flip
    )
    epoch = len(state.progress.history) + 1
    metrics = {
        "schedule/epoch": epoch,
        "loss/train_epoch": loss,
        "accuracy/train_epoch": accuracy,
        **penalty(config, state.model),
        "loss/validation": validation.loss,
        "accuracy/validation": validation.accuracy,
        "speed/images_per_second": speed,
    }
    state.progress.history.append(metrics)
    step = state.progress.step
    logger.log(metrics, step)
    if data.has_images and epoch % -(-config.epochs // PICTURES) == 0:
        logger.log_image("pictures/kernels", pictures.kernels(state.model, data), step)
    state.selection.offer(epoch, state.tested, validation)
    state.clock.lap()  # the next epoch begins here


def save(state: TrainingState, logger: Logger, checkpoints: Checkpoints) -> None:
    """Write a checkpoint, after everything logged up to it has been written."""
    state.metrics.flush(logger)  # which raises if the state is no good
    logger.flush()
    checkpoints.save(state.state_dict(), state.progress.step)


def penalty(config: Config, model: Module) -> dict[str, float]:
    """Return the weight-decay loss as a metric, apart from the classification loss."""
    return {"loss/weight_decay": weight_decay_loss(model, config.weight_decay).item()}


def log_pictures(config: Config, data: Data, model: Module, logger: Logger) -> None:
    """Log the first training batch, augmented as it will be, and the untrained kernels."""
    if not data.has_images:
        return
    inputs, _ = next(TrainingBatches(config, data))
    logger.log_image("pictures/samples", pictures.samples(inputs), 0)
    logger.log_image("pictures/kernels", pictures.kernels(model, data), 0)
