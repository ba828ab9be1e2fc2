"""Evaluation, pictures, metrics.json and the printed summary."""

import json

import pytest
import torch
from torch import nn

from training import report
from training.data import Data, Split
from training.evaluation import Evaluation, evaluate
from training.recipes import recipe


def data(channels: int = 1, size: int = 4, count: int = 6) -> Data:
    """Random images of three classes, of which the last has no test examples."""
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    split = Split(images, labels)
    shape = (channels, 1, 1)
    return Data(
        train=split,
        validation=split,
        test=split,
        input_shape=(channels, size, size),
        classes=("cat", "dog", "cow"),
        mean=torch.full(shape, 100.0),
        std=torch.full(shape, 50.0),
    )


class TestEvaluate:
    def test_loss_and_accuracies(self):
        images = data(count=2500)

        class Constant(nn.Module):
            def forward(self, inputs):
                assert not self.training
                return torch.tensor([2.0, 0.0, 0.0]).expand(len(inputs), 3)

        result = evaluate(Constant(), nn.CrossEntropyLoss(), images, images.test)
        normaliser = torch.tensor([2.0, 0.0, 0.0]).logsumexp(0).item()
        assert result.loss == pytest.approx(normaliser - 1.0)  # half the labels have logit 2
        assert result.accuracy == 0.5
        assert result.per_class == (1.0, 0.0, None)

    def test_a_loss_that_is_not_finite_is_an_error(self):
        images = data()

        class Diverged(nn.Module):
            def forward(self, inputs):
                return torch.full((len(inputs), 3), float("nan"))

        with pytest.raises(FloatingPointError, match=r"diverged.*nan"):
            evaluate(Diverged(), nn.CrossEntropyLoss(), images, images.test)

    def test_inputs_are_normalised_and_no_graph_is_kept(self):
        images = data()
        seen = []

        class Spy(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(16, 3)

            def forward(self, inputs):
                seen.append(inputs)
                logits = self.linear(inputs.flatten(1))
                assert not logits.requires_grad
                return logits

        evaluate(Spy(), nn.CrossEntropyLoss(), images, images.test)
        torch.testing.assert_close(seen[0], (images.test.inputs.float() - 100) / 50)


class TestPictures:
    def test_grid_places_images_row_by_row_on_white(self):
        images = torch.stack([torch.full((1, 48, 48), value) for value in (0.0, 0.2, 0.4)])
        picture = report.grid(images, columns=2)
        assert picture.shape == (3, 2 * 52, 2 * 52)
        assert picture.dtype == torch.uint8
        assert picture[:, 26, 26].tolist() == [0, 0, 0]
        assert picture[:, 26, 78].tolist() == [51, 51, 51]
        assert picture[:, 78, 26].tolist() == [102, 102, 102]
        assert picture[:, 78, 78].tolist() == [255, 255, 255]  # the place that is left over
        assert picture[:, 0, 0].tolist() == [255, 255, 255]

    def test_grid_keeps_colours(self):
        picture = report.grid(torch.tensor([1.0, 0.0, 0.2]).view(1, 3, 1, 1), columns=8)
        assert picture.shape == (3, 52, 52)
        assert picture[:, 26, 26].tolist() == [255, 0, 51]

    def test_kernels_show_zero_as_grey_and_the_extremes_as_black_and_white(self):
        model = nn.Sequential(nn.Conv2d(1, 1, 2))
        model[0].weight.data = torch.tensor([[[[2.0, -2.0], [0.0, 1.0]]]])
        picture = report.kernels(model, data())
        assert picture.shape == (3, 52, 52)
        assert picture[0, [14, 14, 38, 38], [14, 38, 14, 38]].tolist() == [255, 0, 128, 191]

    @pytest.mark.parametrize(
        ("layer", "channels", "tiles"),
        [
            (nn.Conv2d(3, 10, 5), 3, (2, 8)),  # one colour picture per kernel
            (nn.Conv2d(2, 10, 5), 2, (3, 8)),  # one grey picture per channel
            (nn.Linear(16, 5), 1, (1, 5)),  # rows in the shape of an image
            (nn.Linear(48, 100), 3, (8, 8)),  # the first 64
        ],
    )
    def test_kernels_of_first_layers(self, layer, channels, tiles):
        picture = report.kernels(nn.Sequential(nn.Flatten(), layer), data(channels))
        side = picture.shape[2] // tiles[1]
        assert picture.shape == (3, tiles[0] * side, tiles[1] * side)
        assert side >= 52

    def test_samples(self):
        picture = report.samples(data(count=40).train.inputs)
        assert picture.shape == (3, 4 * 52, 8 * 52)


def test_gradient_norms_are_those_of_whole_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    model(torch.randn(5, 3)).square().sum().backward()
    norms = report.gradient_norms(model)
    assert list(norms) == ["norm/gradient/0", "norm/gradient/2"]
    flat = torch.cat([model[0].weight.grad.flatten(), model[0].bias.grad])
    assert norms["norm/gradient/0"] == pytest.approx(flat.norm().item())


class TestMetrics:
    @pytest.fixture
    def metrics(self):
        history = [
            {"schedule/epoch": 1, "accuracy/validation": 0.5, "speed/images_per_second": 10.0},
            {"schedule/epoch": 2, "accuracy/validation": 0.75, "speed/images_per_second": 30.0},
        ]
        test = Evaluation(loss=0.125, accuracy=0.625, per_class=(1.0, 0.25, None))
        model = nn.Linear(16, 3)
        return report.metrics(recipe("digits"), data(), model, history, 2, test, 12.5)

    def test_contents(self, metrics):
        expected = {
            "test_accuracy": 0.625,
            "test_loss": 0.125,
            "per_class_accuracy": {"cat": 1.0, "dog": 0.25, "cow": None},
            "validation_accuracy": 0.75,
            "selected_epoch": 2,
            "parameters": 16 * 3 + 3,
            "epochs": recipe("digits").epochs,
            "seconds": 12.5,
            "images_per_second": 20.0,
            "mean": [100.0],
            "std": [50.0],
        }
        assert metrics.items() >= expected.items()

    def test_written_and_read_back(self, metrics, tmp_path):
        report.write(tmp_path, metrics, data(), nn.Sequential(nn.Conv2d(1, 2, 3)))
        assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
        assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")

    def test_summary(self, metrics):
        assert report.summary(metrics).splitlines() == [
            "",
            "cat        100.00%",
            "dog         25.00%",
            "cow       no examples",
            "test set    62.50%  loss 0.1250  (weights of epoch 2)",
            "12.5 s, 20 images/s",
        ]
