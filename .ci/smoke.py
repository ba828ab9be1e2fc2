"""What somebody does who has just installed the package: also read by a type checker."""

import torch
from torch import Tensor

import manual_ops
from manual_ops import functional as F
from manual_ops import nn


class Net(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.output = nn.Linear(4 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x: Tensor = self.pool(F.relu(self.norm(self.conv(images))))
        logits: Tensor = self.output(x.flatten(1))
        return logits


def main() -> None:
    """Train a step, convert a model, check an op."""
    print(f"torch {torch.__version__}, manual_ops in {manual_ops.__file__}")
    net, labels = Net(), torch.arange(8)
    loss = F.cross_entropy(net(torch.randn(8, 1, 8, 8)), labels)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    model, report = manual_ops.convert(torch.nn.Linear(3, 4))
    assert isinstance(model, nn.Linear), report
    with manual_ops.override():
        assert torch.nn.functional.relu(torch.ones(3)).sum().item() == 3

    checked = manual_ops.check(F.tanh, torch.randn(3, 4))
    assert checked.ok, checked
    print(f"checked {checked.title}: {len(checked.rows)} checks")


if __name__ == "__main__":
    main()
