"""What a run keeps about its inputs."""

import json

import pytest
import torch

from training.inputs import Inputs, load_inputs

CPU = torch.device("cpu")


def image_inputs() -> Inputs:
    mean = torch.tensor([0.1, 100 / 3, 255.0]).view(3, 1, 1)
    return Inputs(input_shape=(3, 4, 5), classes=("cat", "dög"), mean=mean, std=mean / 7)


def point_inputs() -> Inputs:
    return Inputs(
        input_shape=(2,), classes=("a", "b"), mean=torch.tensor([1.0, 2]), std=torch.ones(2)
    )


@pytest.mark.parametrize("inputs", [image_inputs(), point_inputs()])
def test_saved_and_read_back(inputs, tmp_path):
    inputs.save(tmp_path / "inputs.json")
    again = load_inputs(tmp_path / "inputs.json", CPU)
    assert again.input_shape == inputs.input_shape
    assert again.classes == inputs.classes
    assert again.has_images == inputs.has_images
    raw = torch.randint(256, (6, *inputs.input_shape), dtype=torch.uint8)
    assert torch.equal(again.normalise(raw), inputs.normalise(raw))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1.0, 2.0]},
        {"input_shape": []},
        {"classes": 3},
        {"std": "wide"},
    ],
)
def test_a_damaged_file(change, tmp_path):
    path = tmp_path / "inputs.json"
    image_inputs().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"inputs\.json is damaged"):
        load_inputs(path, CPU)


def test_a_file_cut_short(tmp_path):
    path = tmp_path / "inputs.json"
    image_inputs().save(path)
    path.write_text(path.read_text()[:30])
    with pytest.raises(ValueError, match=r"inputs\.json is damaged"):
        load_inputs(path, CPU)
