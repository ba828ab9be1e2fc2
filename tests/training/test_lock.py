"""Locks on folders."""

import os
import signal
import time

import pytest

from training.lock import exclusive, is_free, one_at_a_time


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


def test_processes_take_turns(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = []
    for _ in range(4):
        process = os.fork()
        if process == 0:
            for _ in range(5):
                with one_at_a_time(tmp_path):
                    count = int(counter.read_text())
                    time.sleep(0.002)
                    counter.write_text(str(count + 1))
            os._exit(0)
        processes.append(process)
    for process in processes:
        assert os.waitpid(process, 0)[1] == 0
    assert counter.read_text() == "20"


def test_where_there_are_no_locks_all_may_go_on(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with exclusive(tmp_path), exclusive(tmp_path):
        assert is_free(tmp_path)
    with one_at_a_time(tmp_path), one_at_a_time(tmp_path):
        pass
