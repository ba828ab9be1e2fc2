"""Random crops and flips of whole batches."""

import torch

from training.augment import random_crop, random_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_crop_is_a_window_of_its_padded_image():
    images = torch.randint(1, 256, (50, 3, 6, 5), dtype=torch.uint8)
    cropped = random_crop(images, 2, generator())
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    places = set()
    for image, crop in zip(images, cropped, strict=True):
        padded = torch.zeros(3, 10, 9, dtype=torch.uint8)
        padded[:, 2:8, 2:7] = image
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(padded[:, y : y + 6, x : x + 5], crop)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {y for y, _ in places} == {x for _, x in places} == set(range(5))


def test_no_padding_changes_nothing():
    images = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(random_crop(images, 0, generator()), images)


def test_each_image_is_mirrored_or_not():
    images = torch.randint(256, (200, 3, 4, 5), dtype=torch.uint8)
    flipped = random_flip(images, generator())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert [not m for m in mirrored] == kept
    assert 70 < sum(mirrored) < 130


def test_the_generator_decides():
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(random_crop(images, 2, generator(1)), random_crop(images, 2, generator(1)))
    assert not torch.equal(
        random_crop(images, 2, generator(1)), random_crop(images, 2, generator(2))
    )
    assert torch.equal(random_flip(images, generator(1)), random_flip(images, generator(1)))


def test_inputs_are_left_as_they_were():
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    before = images.clone()
    random_flip(random_crop(images, 2, generator()), generator())
    assert torch.equal(images, before)
