"""What is built for others to install."""

import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling import build

ROOT = Path(__file__).parent.parent
PACKAGE = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "manual_ops").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_wheel(tmp_path: Path) -> None:
    """The library alone: neither the models nor the training program."""
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = set(wheel.namelist())
        (info,) = {name.split("/")[0] for name in names} - {"manual_ops"}
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert {name for name in names if not name.startswith(info)} == PACKAGE
    assert "manual_ops/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    (always,) = (need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need)
    assert always.startswith("torch>=")
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().startswith("# manual_ops")


def test_sdist(tmp_path: Path) -> None:
    """What the wheel is built from, with the tests."""
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= PACKAGE
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("runs/")]
