"""Runs of train.py in processes of their own, for the price of importing it once.

``python -m tests.starter`` imports the program and warms it up, then forks a process for every line
of arguments on its input. It prints the number of the process, and when that has ended, how: its
exit code, or the negative number of the signal.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent


class Starter:
    """Starts runs, one after the other."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",  # a fork cannot use a GPU that was in use before it
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.starter"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def start(self, *args: str) -> int:
        """Start a run in the current directory; return the number of its process."""
        self._pipe(self._process.stdin).write(json.dumps([os.getcwd(), *args]) + "\n")
        return int(self._pipe(self._process.stdout).readline())

    def wait(self) -> int:
        """Wait for the end of the run; return its exit code, or minus the number of a signal."""
        return int(self._pipe(self._process.stdout).readline())

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def serve() -> None:
    """Fork a run for every line of the input."""
    import train

    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()):
        # Half of what a run imports it imports late, on its first step for instance.
        train.main(["--limit-train", "64", "--epochs", "1", "--no-report", "--run-dir", directory])
    for line in sys.stdin:
        directory, *args = json.loads(line)
        process = os.fork()
        if process == 0:
            os.chdir(directory)
            output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = train.main(args)
            sys.stdout.flush()
            os._exit(code)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
