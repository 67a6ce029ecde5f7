"""Where steps are enqueued, one after the other: a CUDA stream of their own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from engine.fetched import Fetched, HostCopy
from engine.tensorrt_backend.graphs import capture


class Replayable(Protocol):
    """Work that was captured."""

    def replay(self) -> None: ...


class Executor(Protocol):
    """Runs what is enqueued in order, while the host goes on."""

    def entered(self) -> AbstractContextManager[object]:
        """What is enqueued within goes here."""
        ...

    def capture(self, enqueue: Callable[[], object]) -> Replayable:
        """What enqueue() enqueues, to be replayed at once and often. It also runs now."""
        ...

    def fetch(self, tensor: torch.Tensor) -> Fetched:
        """Start to copy a tensor to the host, after all that was enqueued."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises torch.AcceleratorError when the device is lost."""
        ...


class StreamExecutor:
    """Executor on a CUDA stream; what is captured is a graph."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def entered(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream)

    def capture(self, enqueue: Callable[[], object]) -> torch.cuda.CUDAGraph:
        self.stream.wait_stream(torch.cuda.current_stream())
        return capture(enqueue, self.stream)

    def fetch(self, tensor: torch.Tensor) -> HostCopy:
        return HostCopy(tensor)

    def synchronize(self) -> None:
        self.stream.synchronize()
