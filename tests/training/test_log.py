"""Loggers."""

import io
import sys

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from tests.training.recorder import Recorder
from training.log import ConsoleLogger, Logger, Loggers, TensorBoardLogger

EPOCH = {
    "schedule/epoch": 3,
    "loss/train_epoch": 0.25,
    "accuracy/train_epoch": 0.75,
    "loss/weight_decay": 0.125,
    "loss/validation": 0.5,
    "accuracy/validation": 0.625,
    "speed/images_per_second": 1234.0,
}


def test_the_plain_logger_does_nothing():
    logger = Logger()
    logger.log({"a": 1.0}, 1)
    logger.log_image("b", torch.zeros(3, 1, 1, dtype=torch.uint8), 1)
    logger.log_precision_recall("c", torch.tensor([True]), torch.tensor([0.5]), 1)
    logger.log_settings({"d": 1})
    logger.flush()
    logger.close()


def test_several_loggers_all_get_everything():
    recorders = Recorder(), Recorder()
    logger = Loggers(*recorders)
    logger.log({"a": 1.0}, 1)
    logger.log_image("b", torch.zeros(3, 1, 1, dtype=torch.uint8), 2)
    logger.close()
    for recorder in recorders:
        assert (recorder.metrics, recorder.images) == ([(1, {"a": 1.0})], [(2, "b")])
        assert recorder.closed


class TestConsole:
    def test_plain_lines_when_the_output_is_no_terminal(self, capsys):
        logger = ConsoleLogger(100)
        logger.log({"loss/train": 1.0}, 20)
        logger.log(EPOCH, 30)
        logger.close()
        out, err = capsys.readouterr()
        assert err == ""
        assert out == (
            "epoch   3  loss 0.2500 + weight decay 0.1250  accuracy  75.00%  "
            "validation loss 0.5000  accuracy  62.50%  1,234 images/s\n"
        )

    def test_no_word_of_weight_decay_without_it(self, capsys):
        logger = ConsoleLogger(100)
        logger.log({**EPOCH, "loss/weight_decay": 0.0}, 30)
        assert "decay" not in capsys.readouterr().out

    def test_a_progress_bar_in_a_terminal(self, monkeypatch, capsys):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        logger = ConsoleLogger(100)
        logger.log({"loss/train": 1.25}, 20)
        logger.log(EPOCH, 30)
        logger.close()
        assert "30/100" in terminal.getvalue()
        assert "loss=1.2500" in terminal.getvalue()
        assert capsys.readouterr().out.startswith("epoch   3")

    def test_the_bar_of_a_resumed_run_begins_where_the_run_is(self, monkeypatch):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        ConsoleLogger(100, 60).close()
        assert "60/100" in terminal.getvalue()


class TestTensorBoard:
    def events(self, directory) -> EventAccumulator:
        accumulator = EventAccumulator(str(directory))
        accumulator.Reload()
        return accumulator

    def test_scalars_and_images(self, tmp_path):
        logger = TensorBoardLogger(tmp_path)
        logger.log({"loss/train": 0.5}, 1)
        logger.log({"loss/train": 0.25, "schedule/learning_rate": 0.1}, 2)
        logger.log_image("pictures/kernels", torch.zeros(3, 4, 5, dtype=torch.uint8), 2)
        logger.close()
        events = self.events(tmp_path)
        assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 0.5), (2, 0.25)]
        image = events.Images("pictures/kernels")[0]
        assert (image.step, image.width, image.height) == (2, 5, 4)

    def test_precision_recall(self, tmp_path):
        logger = TensorBoardLogger(tmp_path)
        hits, scores = torch.tensor([True, False, True]), torch.tensor([0.9, 0.6, 0.3])
        logger.log_precision_recall("precision_recall/cat", hits, scores, 7)
        logger.close()
        (event,) = self.events(tmp_path).Tensors("precision_recall/cat")
        assert event.step == 7
        precision, recall = make_ndarray(event.tensor_proto)[4:, 64]  # at a threshold of one half
        assert (precision, recall) == (0.5, 0.5)

    def test_settings_are_in_the_run_itself(self, tmp_path):
        logger = TensorBoardLogger(tmp_path)
        logger.log_settings({"lr": 0.1, "flip": True, "hidden": [3, 4], "limit": None})
        logger.close()
        assert [path.is_file() for path in tmp_path.iterdir()] == [True]
        plugin = self.events(tmp_path).summary_metadata
        content = plugin["_hparams_/session_start_info"].plugin_data.content
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        assert settings["lr"].number_value == 0.1
        shown = {name: settings[name].string_value for name in ("flip", "hidden", "limit")}
        assert shown == {"flip": "True", "hidden": "[3, 4]", "limit": "None"}

    def test_a_resumed_run_replaces_what_came_after_its_checkpoint(self, tmp_path):
        for purge_step, steps in ((0, (1, 2, 3)), (3, (3, 4))):
            logger = TensorBoardLogger(tmp_path, purge_step)
            for step in steps:
                logger.log({"loss/train": float(purge_step)}, step)
            logger.flush()  # and is killed
        events = self.events(tmp_path).Scalars("loss/train")
        assert [(e.step, e.value) for e in events] == [(1, 0.0), (2, 0.0), (3, 3.0), (4, 3.0)]

    def test_a_second_run_in_the_directory_replaces_the_first(self, tmp_path):
        for value in (1.0, 2.0):
            logger = TensorBoardLogger(tmp_path)
            for step in (1, 2):
                logger.log({"loss/train": value}, step)
            logger.close()
        assert [e.value for e in self.events(tmp_path).Scalars("loss/train")] == [2.0, 2.0]
