"""Image folders and the cache of their decoded images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.files import write_folder
from training import folder
from training.config import Config
from training.folder import read_folder
from training.image_file import read_image
from training.inputs import Inputs


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    """Keep the tests out of the user's own cache."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture
def decoded(monkeypatch):
    """Number of images decoded by each call of the decoder."""
    counts: list[int] = []
    decode = folder._decode

    def counting(paths, size):
        counts.append(len(paths))
        return decode(paths, size)

    monkeypatch.setattr(folder, "_decode", counting)
    return counts


def config(root, **settings) -> Config:
    return Config(dataset="folder", data_dir=root, **settings)


class TestReading:
    def test_images_and_labels(self, tmp_path):
        raw = read_folder(config(write_folder(tmp_path)))
        raw.check("folder")
        assert raw.classes == ("a", "b")
        assert raw.train_inputs.shape == (12, 3, 8, 10)
        assert raw.train_labels.tolist() == [0] * 6 + [1] * 6
        with Image.open(tmp_path / "test" / "b" / "4.png") as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal(raw.test_inputs[10], pixels)

    def test_what_windows_leaves_in_folders_is_passed_over(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"no image")
        assert len(read_folder(config(tmp_path)).train_inputs) == 12

    def test_grey_images_have_one_channel(self, tmp_path):
        raw = read_folder(config(write_folder(tmp_path, mode="L")))
        assert raw.train_inputs.shape == (12, 1, 8, 10)

    def test_grey_among_coloured_images_gets_three_equal_channels(self, tmp_path):
        write_folder(tmp_path)
        Image.new("L", (10, 8), 7).save(tmp_path / "train" / "a" / "0.png")
        raw = read_folder(config(tmp_path))
        assert torch.equal(raw.train_inputs[0], torch.full((3, 8, 10), 7, dtype=torch.uint8))

    def test_image_size_resizes(self, tmp_path):
        write_folder(tmp_path)
        Image.new("RGB", (31, 17)).save(tmp_path / "train" / "a" / "0.jpg")
        raw = read_folder(config(tmp_path, image_size=16))
        assert raw.train_inputs.shape == (13, 3, 16, 16)

    def test_photographs_and_transparency_are_as_predict_sees_them(self, tmp_path):
        """Turned upright, hidden colours not shown."""
        write_folder(tmp_path)
        rng = np.random.default_rng(0)
        lying = Image.fromarray(rng.integers(0, 256, (10, 8, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright
        files = [tmp_path / "train" / "a" / name for name in ("0.png", "00.jpg")]
        Image.fromarray(rng.integers(0, 256, (8, 10, 4), dtype=np.uint8)).save(files[0])
        lying.save(files[1], exif=exif)
        raw = read_folder(config(tmp_path))
        inputs = Inputs((3, 8, 10), raw.classes, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        for path, trained in zip(files, raw.train_inputs, strict=False):
            assert torch.equal(read_image(path, inputs)[0][0], trained)

    @pytest.mark.parametrize("mode", ["L", "LA", "1"])
    def test_grey_stays_grey_without_its_transparency(self, mode, tmp_path):
        write_folder(tmp_path, mode="L")
        image = Image.new("LA", (10, 8), (7, 0)).convert(mode)
        image.save(tmp_path / "train" / "a" / "0.png", transparency=7 if mode == "L" else None)
        raw = read_folder(config(tmp_path))
        assert raw.train_inputs.shape == (12, 1, 8, 10)
        assert raw.train_inputs[0].eq(0 if mode == "1" else 255).all()

    def test_hidden_files_and_folders_are_left_out(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "train" / "a" / ".DS_Store").write_bytes(b"x")
        (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
        (tmp_path / "train" / "README.md").write_text("about")
        assert len(read_folder(config(tmp_path)).train_labels) == 12


class TestMistakes:
    def test_no_such_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"train is not a directory.*--data-dir"):
            read_folder(config(tmp_path))

    def test_no_class_folders(self, tmp_path):
        (tmp_path / "train").mkdir()
        with pytest.raises(ValueError, match="has no class folders"):
            read_folder(config(tmp_path))

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_empty_class_folder(self, part, tmp_path):
        write_folder(tmp_path)
        for path in (tmp_path / part / "b").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=f"{part}/b holds no images"):
            read_folder(config(tmp_path))

    def test_test_class_that_train_lacks(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
        with pytest.raises(ValueError, match=r"has classes that train lacks: \['c'\]"):
            read_folder(config(tmp_path))

    @pytest.mark.parametrize("name", ["notes.txt", "fake.png"])
    def test_a_file_that_is_no_image(self, name, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "train" / "b" / name).write_text("not an image")
        with pytest.raises(ValueError, match=f"train/b/{name} is not an image"):
            read_folder(config(tmp_path))

    def test_a_truncated_image(self, tmp_path):
        path = write_folder(tmp_path) / "test" / "a" / "3.png"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"test/a/3.png is not an image, or damaged"):
            read_folder(config(tmp_path))

    def test_sixteen_bit_images(self, tmp_path):
        write_folder(tmp_path, mode="L")
        pixels = np.full((8, 10), 40_000, dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / "train" / "a" / "0.png")
        with pytest.raises(ValueError, match=r"a/0.png has more than 8 bits"):
            read_folder(config(tmp_path))

    def test_different_sizes(self, tmp_path):
        write_folder(tmp_path)
        Image.new("RGB", (9, 8)).save(tmp_path / "test" / "a" / "0.png")
        with pytest.raises(ValueError, match=r"differ in size: .*10x8.*9x8. Pass --image-size"):
            read_folder(config(tmp_path))


class TestCache:
    def test_a_second_reading_decodes_nothing_and_is_equal(self, tmp_path, decoded):
        write_folder(tmp_path)
        first, second = (read_folder(config(tmp_path)) for _ in range(2))
        assert decoded == [24]
        assert torch.equal(first.train_inputs, second.train_inputs)
        assert torch.equal(first.test_labels, second.test_labels)

    def test_other_pictures_are_decoded_again(self, tmp_path, decoded):
        write_folder(tmp_path)
        read_folder(config(tmp_path))
        Image.new("RGB", (10, 8), "red").save(tmp_path / "train" / "a" / "0.png")
        raw = read_folder(config(tmp_path))
        assert decoded == [24, 24]
        assert raw.train_inputs[0, 0].eq(255).all()

    @pytest.mark.parametrize("change", ["added", "removed", "renamed", "touched", "resized"])
    def test_a_stale_cache_is_not_read(self, change, tmp_path, decoded):
        write_folder(tmp_path)
        read_folder(config(tmp_path))
        path = tmp_path / "train" / "a" / "5.png"
        size = None
        if change == "added":
            path.with_name("6.png").write_bytes(path.read_bytes())
        elif change == "removed":
            path.unlink()
        elif change == "renamed":
            path.rename(path.with_name("7.png"))
        elif change == "touched":
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        else:
            size = 8
        read_folder(config(tmp_path, image_size=size))
        assert len(decoded) == 2

    @pytest.mark.parametrize("damage", ["truncated", "overwritten", "emptied", "flipped"])
    def test_a_damaged_cache_is_not_read(self, damage, tmp_path, decoded):
        write_folder(tmp_path)
        first = read_folder(config(tmp_path))
        cache = tmp_path / ".decoded.npz"
        content = bytearray(cache.read_bytes())
        middle = len(content) // 2
        if damage == "flipped":
            content[middle] ^= 0xFF
        cache.write_bytes(
            {"truncated": content[:middle], "overwritten": b"x" * 99, "emptied": b""}.get(
                damage, content
            )
        )
        second = read_folder(config(tmp_path))
        assert decoded == [24, 24]
        assert torch.equal(first.train_inputs, second.train_inputs)
        assert torch.equal(read_folder(config(tmp_path)).train_inputs, first.train_inputs)
        assert decoded == [24, 24]  # the damaged cache has been replaced

    @pytest.mark.parametrize(
        "arrays",
        [
            {},
            {"images": np.zeros((3, 3, 8, 10), np.uint8), "labels": np.zeros(3, np.int64)},
            {"images": np.zeros((24, 3, 8, 10)), "labels": np.zeros(24, np.int64)},
            {"images": np.zeros((24, 80), np.uint8), "labels": np.zeros(24, np.int64)},
        ],
    )
    def test_a_cache_of_other_arrays_is_not_read(self, arrays, tmp_path, decoded):
        """Whole, of this very folder, but not what this program writes."""
        write_folder(tmp_path)
        first = read_folder(config(tmp_path))
        cache = tmp_path / ".decoded.npz"
        with np.load(cache) as members:
            fingerprint = members["fingerprint"]
        np.savez(cache, fingerprint=fingerprint, **arrays)
        assert torch.equal(read_folder(config(tmp_path)).train_inputs, first.train_inputs)
        assert decoded == [24, 24]

    def test_what_a_killed_writer_left_goes(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "..decoded.npz.abc.unfinished").write_bytes(b"half a cache")
        read_folder(config(tmp_path))
        assert sorted(os.listdir(tmp_path)) == [".decoded.npz", "test", "train"]

    def test_a_writer_that_dies_leaves_no_cache(self, tmp_path, monkeypatch):
        write_folder(tmp_path)

        def die_halfway(file, **arrays):
            file.write(b"half a cache")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", die_halfway)
            with pytest.raises(KeyboardInterrupt):
                read_folder(config(tmp_path))
        assert sorted(os.listdir(tmp_path)) == ["test", "train"]

    def test_a_read_only_folder_is_cached_elsewhere(
        self, tmp_path, decoded, monkeypatch, user_cache
    ):
        write_folder(tmp_path)
        write = folder.atomic_write

        def refuse(path):
            if path.parent == tmp_path:
                raise PermissionError("read-only")
            return write(path)

        monkeypatch.setattr(folder, "atomic_write", refuse)
        for _ in range(2):
            read_folder(config(tmp_path))
        assert decoded == [24]
        assert len(list((user_cache / "manual_ops").iterdir())) == 1
        assert not (tmp_path / ".decoded.npz").exists()

    def test_with_no_place_to_write_it_warns_and_goes_on(self, tmp_path, monkeypatch):
        def refuse(path):
            raise OSError("disk full")

        monkeypatch.setattr(folder, "atomic_write", refuse)
        write_folder(tmp_path)
        with pytest.warns(UserWarning, match="decoded again next time"):
            raw = read_folder(config(tmp_path))
        assert len(raw.train_labels) == 12
