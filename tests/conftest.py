"""What all tests share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads that wait for each other at every tiny operation are many times slower on a busy machine."""
    torch.set_num_threads(1)
