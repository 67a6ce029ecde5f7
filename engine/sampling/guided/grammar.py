"""A grammar that was proven usable, and the state of each output that follows it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from engine.sampling.guided.limits import parser_limits
from engine.sampling.guided.proof import library_words
from engine.sampling.guided.spec import GuidedKind

if TYPE_CHECKING:
    from engine.sampling.guided.executor import GuideExecutor

# [num_words] or [rows, num_words]: bit i % 32 of word i // 32 is token i; 1 is allowed.
Mask = NDArray[np.int32]


class GuideError(Exception):
    """This output cannot go on: a limit was passed, or a token was not allowed. Others go on."""


class Grammar:
    """Any thread may `start` outputs of it."""

    def __init__(self, vocabulary: LLTokenizer, kind: GuidedKind, source: str) -> None:
        """source: of that kind, in the library's format, and proven. Does not hold the GIL while it builds.

        Raises GuideError.
        """
        self._matcher = LLMatcher(vocabulary, source, log_level=0, limits=parser_limits(kind))
        if self._matcher.is_error():
            raise GuideError(library_words(self._matcher))

    def start(self, token_ids: Sequence[int] = ()) -> "Guide":
        """A new output, or one that has these tokens already. Microseconds, and some more for each token.

        Raises GuideError if the tokens do not match.
        """
        guide = Guide(self._matcher.deep_copy())
        guide.advance(token_ids)
        return guide

    def make_executor(self, num_threads: int) -> "GuideExecutor":
        """For outputs of any grammars."""
        from engine.sampling.guided.executor import GuideExecutor  # which knows guides

        return GuideExecutor(num_threads)


class Guide:
    """What one output may go on with. For one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end-of-sequence token can follow."""
        return bool(self.matcher.is_stopped())

    @property
    def can_finish(self) -> bool:
        """Whether the output matches as it is; an end-of-sequence token is allowed then."""
        return bool(self.matcher.is_accepting())

    @property
    def is_broken(self) -> bool:
        """Whether it cannot go on: see `error`."""
        return bool(self.matcher.is_error())

    @property
    def error(self) -> GuideError:
        """Why it cannot go on, once it `is_broken`."""
        return GuideError(library_words(self.matcher))

    def advance(self, token_ids: Iterable[int]) -> None:
        """The next tokens of the output. Raises GuideError; the guide is of no use then."""
        for token_id in token_ids:  # one at a time: the library holds the GIL while it takes some
            if not self.matcher.consume_token(token_id):
                raise self.error

    def fill(self, mask: Mask) -> None:
        """mask: [num_words], written. Raises GuideError; the mask then allows end-of-sequence tokens only."""
        assert mask.dtype == np.int32, mask.dtype
        assert mask.flags.c_contiguous
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self.is_broken:
            raise self.error
