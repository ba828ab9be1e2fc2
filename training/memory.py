"""Peak memory of a run."""

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most memory in use so far, in bytes.

    On CUDA what PyTorch had allocated on the device; else the resident memory of the process,
    with its program code and the data set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux. getrusage() would tell the parent's peak if that was higher.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
