"""``import manual_ops`` is cheap: it brings in nothing that ``import torch`` had not."""

import subprocess
import sys
from pathlib import Path

import manual_ops

SCRIPT = """
import sys, torch
before = set(sys.modules)
import manual_ops
new = {name for name in set(sys.modules) - before if name.partition(".")[0] != "manual_ops"}
print(sorted(name for name in new if name.partition(".")[0] not in sys.stdlib_module_names))
"""


def test_import_brings_in_nothing_else() -> None:
    """Neither another package nor a part of torch that it loads when it is needed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(manual_ops.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
