"""Many outputs at once, on threads of their own, while the caller waits without the GIL."""

from collections.abc import Mapping, Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from engine.sampling.guided.grammar import Guide, GuideError, Mask


class GuideExecutor:
    """For one thread at a time."""

    def __init__(self, num_threads: int) -> None:
        self._executor = LLExecutor(num_threads)
        self._companion = _make_companion()

    def advance(self, tokens: Sequence[tuple[Guide, int]]) -> dict[int, GuideError]:
        """Each guide by a token. Returns the errors of those that cannot go on, by index."""
        steps = [(guide.matcher, token_id) for guide, token_id in tokens]
        accepted = self._executor.consume_token_par([*steps, self._companion]) if steps else []
        return {
            index: guide.error
            for index, ((guide, _), is_accepted) in enumerate(zip(tokens, accepted, strict=False))
            if not is_accepted
        }

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
            self._executor.unsafe_compute_mask_ptr(
                matchers, masks.ctypes.data, num_words * masks.itemsize, num_rows
            )
        return {row: guide.error for row, guide in guides.items() if guide.is_broken}


def _make_companion() -> tuple[LLMatcher, int]:
    """A finished output, which takes one more end at no cost: the library holds the GIL for a lone output."""
    vocabulary = LLTokenizer("byte")
    matcher = LLMatcher(vocabulary, 'start: "a"', log_level=0)
    matcher.consume_token(ord("a"))
    assert matcher.consume_token(vocabulary.eos_token)
    return matcher, vocabulary.eos_token
