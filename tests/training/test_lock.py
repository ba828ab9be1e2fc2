"""Locks on folders."""

import os
import signal

import pytest

from training.lock import exclusive, is_free


def test_one_holder_at_a_time(tmp_path):
    assert is_free(tmp_path)
    with exclusive(tmp_path):
        assert not is_free(tmp_path)
        with pytest.raises(ValueError, match="another process is running in"):
            exclusive(tmp_path).__enter__()
    assert is_free(tmp_path)
    assert is_free(tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_it_ends_with_its_process(tmp_path):
    ready, told = os.pipe()
    process = os.fork()
    if process == 0:
        with exclusive(tmp_path):
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    assert not is_free(tmp_path)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert is_free(tmp_path)


def test_where_there_are_no_locks_all_may_go_on(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with exclusive(tmp_path), exclusive(tmp_path):
        assert is_free(tmp_path)
