"""How a tokenizer's tokens become text piece by piece: chosen once, by what its decoder is made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import tokenizers

from engine.text.byte_fallback import ByteFallbackStream, fallback_table
from engine.text.byte_level import ByteLevelStream, spelled_bytes
from engine.text.vocabulary import decoder_parts, visible_tokens
from engine.text.windowed import WindowedStream


class TextStream(Protocol):
    """The text of one sequence."""

    def add(self, token_ids: Sequence[int]) -> str:
        """The next tokens; the text that is certain now."""
        ...

    def flush(self) -> str:
        """No more tokens come; the rest of the text."""
        ...


# Called with the prompt's token ids.
StartStream = Callable[[Sequence[int]], TextStream]


def choose_decoding(backend: tokenizers.Tokenizer) -> StartStream:
    """Takes some 0.3 s for 128k tokens: call it once for each tokenizer."""
    tokens, decoder = visible_tokens(backend), decoder_parts(backend)
    if [part["type"] for part in decoder] == ["ByteLevel"]:
        return partial(
            ByteLevelStream, {token_id: spelled_bytes(token) for token_id, token in tokens.items()}
        )
    if (table := fallback_table(tokens, decoder)) is not None:
        return partial(ByteFallbackStream, table)
    return partial(WindowedStream, backend, frozenset(tokens))
