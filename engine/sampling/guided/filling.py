"""The masks of a batch, filled at once."""

from collections.abc import Mapping

import numpy as np
from llguidance import LLExecutor

from engine.sampling.guided.grammar import Guide, GuideError, Mask


class MaskFiller:
    """Threads that fill masks while the caller, who waits, does not hold the GIL."""

    def __init__(self, num_threads: int) -> None:
        """The threads start with the first batch."""
        self._num_threads = num_threads
        self._executor: LLExecutor | None = None

    def fill(self, guides: Mapping[int, Guide], masks: Mask) -> dict[int, GuideError]:
        """guides: by the row of masks, int32 [rows, num_words] and contiguous, to write; other rows stay.

        Returns, by row, the errors of those that cannot go on; theirs allows end-of-sequence tokens only.
        """
        assert masks.dtype == np.int32, masks.dtype
        assert masks.ndim == 2, masks.shape
        assert masks.flags.c_contiguous
        assert all(0 <= row < len(masks) for row in guides)
        if guides:
            matchers = [(guide.matcher, row) for row, guide in guides.items()]
            num_rows, num_words = masks.shape
            pool = self._pool()
            pool.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, num_words * masks.itemsize, num_rows)
        return {row: error for row, guide in guides.items() if (error := _error_of(guide)) is not None}

    def _pool(self) -> LLExecutor:
        if self._executor is None:
            self._executor = LLExecutor(self._num_threads)
        return self._executor


def _error_of(guide: Guide) -> GuideError | None:
    try:
        guide.check()
    except GuideError as error:
        return error
    return None
