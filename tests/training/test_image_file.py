"""Image files as inputs of a model."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.image_file import read_image, seems_inverted
from training.inputs import Inputs


def inputs(channels: int, height: int = 8, width: int = 8, mean: float = 30.0) -> Inputs:
    per_channel = torch.full((channels, 1, 1), mean)
    return Inputs((channels, height, width), ("a", "b"), per_channel, per_channel)


@pytest.fixture
def save(tmp_path):
    def save(image: Image.Image, name: str = "image.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def random_image(mode: str, size: tuple[int, int] = (8, 8)) -> Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_an_image_like_those_of_training_stays_as_it_is(save, mode, channels):
    image = random_image(mode, (6, 8))
    pixels, done = read_image(save(image), inputs(channels, height=8, width=6))
    assert pixels.shape == (1, channels, 8, 6)
    expected = torch.from_numpy(np.array(image)).view(8, 6, channels).permute(2, 0, 1)
    assert torch.equal(pixels[0], expected)
    assert done == []


def test_grey_for_a_model_of_colours_and_the_reverse(save):
    image = random_image("L")
    pixels, done = read_image(save(image), inputs(3))
    assert done == ["made colour"]
    assert (pixels[0] == torch.from_numpy(np.array(image))).all()
    image = random_image("RGB")
    pixels, done = read_image(save(image), inputs(1))
    assert done == ["made grey"]
    assert torch.equal(pixels[0, 0], torch.from_numpy(np.array(image.convert("L"))))


def test_a_palette_is_colours(save):
    image = random_image("RGB").quantize(16)
    pixels, done = read_image(save(image), inputs(3))
    assert torch.equal(pixels[0].permute(1, 2, 0), torch.from_numpy(np.array(image.convert("RGB"))))
    assert done == []


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_parts_are_white(save, mode):
    array = np.array(random_image(mode))
    array[..., -1] = 255
    opaque, done = read_image(save(Image.fromarray(array)), inputs(3))
    assert "transparent parts made white" not in done
    array[0, 0] = 0
    pixels, done = read_image(save(Image.fromarray(array)), inputs(3))
    assert done[0] == "transparent parts made white"
    assert pixels[0, :, 0, 0].tolist() == [255, 255, 255]
    assert torch.equal(pixels[0, :, 1:], opaque[0, :, 1:])


def test_sixteen_bits(save):
    array = np.array([[0, 257, 65535, 30000]] * 4, dtype=np.uint16)
    pixels, done = read_image(save(Image.fromarray(array)), inputs(1, 4, 4))
    assert pixels[0, 0, 0].tolist() == [0, 1, 255, 116]
    assert done == ["reduced from 16 to 8 bits"]


def test_another_size_is_cut_to_the_middle(save):
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:, :8], array[:, 24:] = (255, 0, 0), (0, 0, 255)  # what is cut off
    pixels, done = read_image(save(Image.fromarray(array)), inputs(3))
    assert done == ["cut to its middle and resized from 32x16 to 8x8"]
    assert pixels.max() < 64  # the filter reaches a little over the edge


def test_or_squeezed(save):
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:, :8], array[:, 24:] = (255, 0, 0), (0, 0, 255)
    pixels, done = read_image(save(Image.fromarray(array)), inputs(3), keep_all=True)
    assert done == ["resized from 32x16 to 8x8"]
    assert pixels[0, :, 4, 0].tolist() == [255, 0, 0]
    assert pixels[0, :, 4, 7].tolist() == [0, 0, 255]


def test_the_same_proportions_are_not_cut(save):
    _, done = read_image(save(random_image("L", (12, 6))), inputs(1, height=4, width=8))
    assert done == ["resized from 12x6 to 8x4"]


def test_inverted(save):
    image = random_image("L")
    plain, _ = read_image(save(image), inputs(1))
    inverted, done = read_image(save(image), inputs(1), invert=True)
    assert torch.equal(inverted, 255 - plain)
    assert done == ["inverted"]


def test_a_photograph_is_turned_as_its_camera_was_held(save):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels, _ = read_image(save(Image.fromarray(array), "photo.jpg", exif=exif), inputs(3))
    assert pixels[0, :, 0].float().mean() < 10
    assert pixels[0, :, 7].float().mean() > 245


@pytest.mark.parametrize(
    ("mean", "pixel", "swapped"),
    [
        (30.0, 230, True),
        (30.0, 60, False),
        (220.0, 20, True),
        (220.0, 230, False),
        (120.0, 250, False),  # the training images are neither light nor dark
    ],
)
def test_black_on_white_for_a_model_of_white_on_black_is_noticed(mean, pixel, swapped):
    image = torch.full((1, 1, 8, 8), pixel, dtype=torch.uint8)
    assert seems_inverted(image, inputs(1, mean=mean)) == swapped


def test_colours_are_not_thought_inverted():
    assert not seems_inverted(torch.full((1, 3, 8, 8), 250, dtype=torch.uint8), inputs(3))


class TestMistakes:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.png"):
            read_image(tmp_path / "none.png", inputs(1))

    def test_no_image(self, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(ValueError, match=r"text\.png is not an image"):
            read_image(tmp_path / "text.png", inputs(1))

    def test_an_image_cut_short(self, save):
        path = save(random_image("RGB", (64, 64)))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"not an image, or damaged"):
            read_image(path, inputs(3))

    def test_floating_point_pixels(self, save):
        path = save(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "float.tiff")
        with pytest.raises(ValueError, match="convert it to 8 bits"):
            read_image(path, inputs(1))
