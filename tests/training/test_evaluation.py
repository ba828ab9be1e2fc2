"""Evaluation of a model."""

import pytest
import torch
from torch import nn

from tests.training.examples import data
from training.evaluation import evaluate, predict


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
        assert torch.equal(result.labels, images.test.labels)
        assert result.logits.shape == (2500, 3)
        expected = torch.tensor([2.0, 0.0, 0.0]).softmax(0)
        torch.testing.assert_close(result.probabilities, expected.expand(2500, 3))

    def test_flipped_images_are_averaged_in(self):
        images = data()

        class LeftColumn(nn.Module):
            def forward(self, inputs):
                return inputs[..., 0].flatten(1)[:, :3]

        model = LeftColumn()
        plain = predict(model, images, images.test.inputs)
        mirrored = predict(model, images, images.test.inputs.flip(-1))
        assert not torch.equal(plain, mirrored)
        both = predict(model, images, images.test.inputs, flip=True)
        torch.testing.assert_close(both, (plain + mirrored) / 2)
        result = evaluate(model, nn.CrossEntropyLoss(), images, images.test, flip=True)
        assert torch.equal(result.logits, both)

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


def test_predictions_are_in_the_order_of_the_inputs():
    images = data(count=600)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    logits = predict(model, images, images.test.inputs)
    expected = model(images.normalise(images.test.inputs))
    torch.testing.assert_close(logits, expected.detach())
