"""The curves of a run on disk."""

import json

import pytest
import torch

from training.curves import CurveLogger, read_curves


def write(directory, *steps: int, purge_step: int = 0, value: float = 0.5) -> None:
    logger = CurveLogger(directory, purge_step)
    for step in steps:
        logger.log({"loss/train": value, "accuracy/train": 0.25}, step)
    logger.close()


def test_written_and_read_back(tmp_path):
    logger = CurveLogger(tmp_path)
    logger.log({"loss/train": 0.1}, 1)
    logger.log({"loss/train": 0.2, "norm/gradient/conv": 3.0}, 2)
    logger.log_image("pictures/kernels", torch.zeros(3, 1, 1, dtype=torch.uint8), 2)
    # Not closed: a killed run has lost nothing.
    assert read_curves(tmp_path) == {
        "loss/train": [(1, 0.1), (2, 0.2)],
        "norm/gradient/conv": [(2, 3.0)],
    }
    logger.close()


def test_a_run_without_curves_has_none(tmp_path):
    assert read_curves(tmp_path) == {}


def test_a_second_run_in_the_directory_replaces_the_first(tmp_path):
    write(tmp_path, 1, 2, 3)
    write(tmp_path, 1, value=0.75)
    assert read_curves(tmp_path)["loss/train"] == [(1, 0.75)]


def test_a_continued_run_replaces_the_steps_it_repeats(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    write(tmp_path, 3, purge_step=3, value=0.75)
    assert read_curves(tmp_path)["loss/train"] == [(1, 0.5), (2, 0.5), (3, 0.75)]


def test_a_damaged_line_is_passed_over(tmp_path):
    write(tmp_path, 1, 2)
    path = tmp_path / "curves.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\0\0\n17\n")
    assert read_curves(tmp_path)["loss/train"] == [(1, 0.5)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_null_in_the_file_and_left_out(tmp_path, value):
    write(tmp_path, 1, value=value)
    line = (tmp_path / "curves.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss/train"] is None
    assert read_curves(tmp_path) == {"accuracy/train": [(1, 0.25)]}
