"""Files of tensors under damage: read as they were written, or refused."""

import random
import zipfile

import pytest
import torch

from tests.faults import disk_full_at
from training import tensor_file

CONTENT = {"weights": torch.arange(600.0).view(20, 30), "plain": [1, 2.0, "three", True, None]}


@pytest.fixture
def path(tmp_path):
    tensor_file.write(tmp_path / "a.pt", CONTENT)
    return tmp_path / "a.pt"


def same(content: object) -> bool:
    return repr(content) == repr(CONTENT) and torch.equal(content["weights"], CONTENT["weights"])


def test_a_round_trip(path):
    assert same(tensor_file.read(path))


def test_no_byte_can_be_changed_unnoticed(path):
    """But for those that say nothing: dates, padding."""
    whole = path.read_bytes()
    draw = random.Random(0)
    refusals = []
    for place in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= draw.randrange(1, 256)
        path.write_bytes(changed)
        try:
            assert same(tensor_file.read(path)), place
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) / 5 / 2
    for refusal in refusals:
        assert refusal.startswith(f"{path} is ")
        assert "\n" not in refusal


def test_no_length_but_its_own_will_do(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pt is damaged"):
            tensor_file.read(path)


def test_a_checksum_that_fits_what_does_not(path):
    """An archive that is right, of a pickle that is not."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    for content in (b"", members[pickled][:40], b"cposix\nsystem\n(S'touch evidence'\ntR."):
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in {**members, pickled: content}.items():
                archive.writestr(name, member)
        with pytest.raises(ValueError, match=r"a\.pt is (damaged|refused)"):
            tensor_file.read(path)


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        tensor_file.read(tmp_path)


@pytest.mark.parametrize("room", [0, 100, 1000, 3000])
def test_a_full_disk_leaves_what_was_there(path, room):
    with disk_full_at(room), pytest.raises(OSError, match=r"too large: '.*a\.pt'"):
        tensor_file.write(path, {"weights": torch.ones(5000)})
    assert same(tensor_file.read(path))
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]
