"""Tensors on their way to the host."""

from typing import Protocol

import torch


class Fetched(Protocol):
    """A tensor on its way to the host."""

    def wait(self) -> torch.Tensor: ...


class HostCopy:
    """An asynchronous copy to pinned memory, on the current stream; a tensor of the host is itself."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.Event | None = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.Event(tensor.device)
            self._event.record()

    def wait(self) -> torch.Tensor:
        """The copy, once it is there. Raises torch.AcceleratorError when the device is lost."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor
