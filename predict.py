"""Show a trained model image files: the classes it thinks most likely.

    python predict.py runs/NAME image.png other.jpg
    python predict.py runs/NAME digit.png --invert       # black on white, for a model of MNIST

Images of another size or colour mode are converted, and the line of the file says how.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from training.evaluation import predict
from training.image_file import read_image, seems_inverted
from training.restore import Trained, restore


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Show a trained model image files."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""

    top: int = 5
    """Classes to show for each image."""

    invert: bool = False
    """Swap dark and light."""

    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("name at least one image file")
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = tyro.cli(Arguments, args=args, description=__doc__)
    try:
        trained = restore(arguments.run_dir, arguments.device)
        if not trained.inputs.has_images:
            raise ValueError(f"{arguments.run_dir} was trained on points, not on images")
    except (ValueError, OSError) as error:
        return fail(error)
    return max(show(trained, path, arguments) for path in arguments.images)


def show(trained: Trained, path: Path, arguments: Arguments) -> int:
    """Print the lines on one image file; return the exit code."""
    try:
        print(describe(trained, path, arguments))
    except (ValueError, OSError) as error:  # the other files are still worth showing
        return fail(error)
    return 0


def fail(error: Exception) -> int:
    """Print what was wrong; return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def describe(trained: Trained, path: Path, arguments: Arguments) -> str:
    """Return the lines on one image file.

    Raises:
        ValueError: It is no image.
        OSError: It cannot be read.
    """
    inputs = trained.inputs
    squeezed = trained.config.image_size is not None  # as the training images were
    image, done = read_image(path, inputs, keep_all=squeezed, invert=arguments.invert)
    lines = [f"{path}: {', '.join(done)}" if done else str(path)]
    logits = predict(trained.model, inputs, image.to(inputs.device), flip=trained.config.test_flip)
    probabilities = logits[0].softmax(0)
    values, labels = probabilities.topk(min(arguments.top, len(inputs.classes)))
    lines += [
        f"  {value:7.2%}  {inputs.classes[label]}"
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]
    if seems_inverted(image, inputs):
        how = "without --invert" if arguments.invert else "--invert"
        lines.append(f"  dark and light seem swapped against the training images: try {how}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
