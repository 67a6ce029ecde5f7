"""Decoding any other tokenizer, through a window over its last tokens."""

from collections.abc import Container, Sequence

import tokenizers

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NUM_CONTEXT = 4  # tokens before the new ones, so that the backend joins these to something
_MAX_HELD = 4  # tokens; no character of UTF-8 is longer


class WindowedStream:
    """New text is what the window decodes to beyond what its old part decodes to.

    Tokens are held back while the text ends in U+FFFD, which the next ones may turn into a character. Linear,
    as the window has at most eight tokens; exact if what a token adds depends on no more tokens before it.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, visible: Container[int], prompt_token_ids: Sequence[int]
    ) -> None:
        self._backend = backend
        self._visible = visible
        self._window = self._last_visible(prompt_token_ids)
        self._shown = backend.decode(self._window)
        self._num_held = 0

    def add(self, token_ids: Sequence[int]) -> str:
        return "".join([self._add(token_id) for token_id in token_ids if token_id in self._visible])

    def flush(self) -> str:
        return self._show(self._backend.decode(self._window))

    def _add(self, token_id: int) -> str:
        self._window.append(token_id)
        self._num_held += 1
        text = self._backend.decode(self._window)
        if text.endswith(_REPLACEMENT) and self._num_held < _MAX_HELD:
            return ""
        return self._show(text)

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        del self._window[:-_NUM_CONTEXT]
        self._shown = self._backend.decode(self._window)
        self._num_held = 0
        return new

    def _last_visible(self, token_ids: Sequence[int]) -> list[int]:
        last: list[int] = []
        for token_id in reversed(token_ids):
            if len(last) == _NUM_CONTEXT:
                break
            if token_id in self._visible:
                last.insert(0, token_id)
        return last
