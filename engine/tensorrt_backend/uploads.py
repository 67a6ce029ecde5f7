"""Small arrays on their way to the device, which the host does not wait for."""

from collections.abc import Sequence

import torch

from engine.tensorrt_backend.packing import Words

_NUM_SLOTS = 8  # a step makes two uploads at most, and two steps are in flight
_ALIGNMENT = 32  # words: kernels read faster from addresses that are multiples of 16 bytes


class Uploads:
    """A ring of pinned buffers, each with a buffer on the device. Copies from pageable memory would wait for
    all work that is queued.

    What an upload has brought stays valid for the work enqueued before the next few uploads.
    """

    def __init__(self, max_num_words: int, device: torch.device) -> None:
        """max_num_words: of one upload, padding included."""
        self.max_num_words = max_num_words
        self._pinned = [
            torch.empty(max_num_words, dtype=torch.int32, pin_memory=True) for _ in range(_NUM_SLOTS)
        ]
        self._arrays: list[Words] = [slot.numpy() for slot in self._pinned]
        self._staged = torch.empty((_NUM_SLOTS, max_num_words), dtype=torch.int32, device=device)
        self._events = [torch.Event(device) for _ in range(_NUM_SLOTS)]
        self._next = 0

    def upload(self, parts: Sequence[Words]) -> list[torch.Tensor]:
        """One copy of all parts, int32 of any shapes, on the current stream. Returns them on the device."""
        slot = self._next
        self._next = (slot + 1) % _NUM_SLOTS
        self._events[slot].synchronize()  # returns at once unless the ring has come round too soon
        array, staged = self._arrays[slot], self._staged[slot]
        views, start = [], 0
        for part in parts:
            end = start + part.size
            array[start:end] = part.reshape(-1)
            views.append(staged[start:end].view(part.shape))
            start = padded(end)
        staged[:start].copy_(self._pinned[slot][:start], non_blocking=True)
        self._events[slot].record()
        return views


def padded(num_words: int) -> int:
    """What a part of an upload takes of max_num_words."""
    return -(-num_words // _ALIGNMENT) * _ALIGNMENT
