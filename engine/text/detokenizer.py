"""Token ids to text, piece by piece."""

from collections.abc import Sequence

from engine.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one generated sequence, without special tokens.

    What `add` and `flush` return, joined, is what `tokenizer.decode(prompt + generated)` has beyond
    `tokenizer.decode(prompt)`, however the tokens are cut into pieces: a space between prompt and output is
    kept, and a character that the prompt's last token began is completed. Half a character is never returned.
    Takes time linear in the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_token_ids: Sequence[int] = ()) -> None:
        self._stream = tokenizer.start_stream(prompt_token_ids)

    def add(self, token_ids: Sequence[int]) -> str:
        """The next generated tokens; the text that is certain now. Ids without text are skipped."""
        return self._stream.add(token_ids)

    def flush(self) -> str:
        """No more tokens come; the rest of the text, where unfinished characters are U+FFFD."""
        return self._stream.flush()
