"""Peak memory."""

import numpy as np
import pytest
import torch

from training.memory import peak_memory

MEBIBYTE = 2**20


def test_memory_in_use_counts_even_when_it_is_free_again():
    before = peak_memory(torch.device("cpu"))
    np.ones(before + 64 * MEBIBYTE, dtype=np.uint8)  # more than there was at any time
    assert peak_memory(torch.device("cpu")) >= before + 64 * MEBIBYTE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_memory_of_the_device_counts():
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory(torch.device("cuda"))
    torch.ones(64 * MEBIBYTE, dtype=torch.uint8, device="cuda")
    assert peak_memory(torch.device("cuda")) >= before + 64 * MEBIBYTE
