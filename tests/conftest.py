"""What all tests share."""

import os

import pytest
import torch

# Triton decides when a kernel is defined whether to compile it: without a GPU it must interpret all of them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads that wait for each other at every tiny operation are many times slower on a busy machine."""
    torch.set_num_threads(1)
