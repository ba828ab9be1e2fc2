"""Random crops and flips of whole batches."""

import pytest
import torch

from training.augment import cutout, mixup, random_crop, random_flip


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
    cutout(images, 3, generator())
    mixup(images, torch.zeros(20, dtype=torch.int64), 2, 1.0, generator())
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cutout_blackens_one_square_of_each_image(size):
    images = torch.randint(1, 256, (300, 3, 7, 9), dtype=torch.uint8)
    cut = cutout(images, size, generator())
    assert cut.dtype == torch.uint8
    whole = 0
    for image, result in zip(images, cut, strict=True):
        black = (result == 0).all(0)
        assert torch.equal(result[:, ~black], image[:, ~black])
        rows, columns = black.any(1).nonzero().flatten(), black.any(0).nonzero().flatten()
        assert torch.equal(black, torch.outer(black.any(1), black.any(0)))
        for places in (rows, columns):
            assert 1 <= len(places) <= size
            assert len(places) == places[-1] - places[0] + 1
        whole += black.sum().item() == size * size
    assert whole > 50  # the rest of the squares reach over an edge
    assert (cut == 0).all(1).any(0).all()  # every pixel is hit


def test_no_cutout_changes_nothing():
    images = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(cutout(images, 0, generator()), images)


def test_mixup_mixes_inputs_and_labels_in_one_proportion():
    labels = torch.arange(6) % 3
    inputs = torch.stack([torch.full((1, 2, 2), 10.0 * n) for n in range(6)])
    mixed, targets = mixup(inputs, labels, 3, 1.0, generator())
    assert mixed.shape == inputs.shape
    assert targets.shape == (6, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    for n in range(6):
        share = targets[n, labels[n]].item()
        assert 0 < share < 1
        torch.testing.assert_close(mixed[n], share * inputs[n] + (1 - share) * inputs[n - 1])
        torch.testing.assert_close(targets[n, labels[n - 1]].item(), 1 - share)
    assert len(set(targets.amax(1).tolist())) == 6


def test_shares_of_mixup_follow_beta():
    labels = torch.arange(4000) % 2
    spreads = {}
    for alpha in (0.2, 1.0, 5.0):
        _, targets = mixup(torch.zeros(4000, 1), labels, 2, alpha, generator())
        share = targets[torch.arange(4000), labels]
        assert share.mean().item() == pytest.approx(0.5, abs=0.03)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
        spreads[alpha] = share
    assert ((spreads[0.2] < 0.01) | (spreads[0.2] > 0.99)).float().mean() > 0.3


def test_the_generator_decides_squares_and_shares():
    images = torch.randint(1, 256, (20, 1, 8, 8), dtype=torch.uint8)
    labels = torch.zeros(20, dtype=torch.int64)
    for change in (
        lambda seed: cutout(images, 3, generator(seed)),
        lambda seed: mixup(images, labels, 2, 1.0, generator(seed))[0],
    ):
        assert torch.equal(change(1), change(1))
        assert not torch.equal(change(1), change(2))
