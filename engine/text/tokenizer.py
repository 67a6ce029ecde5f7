"""Text to token ids and back, from the tokenizer files of a Hugging Face directory."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import tokenizers

from engine.errors import InvalidArgumentError
from engine.text.backend import load_backend
from engine.text.decoding import TextStream, choose_decoding


class Tokenizer:
    """A `tokenizers` backend that no longer changes, so any thread may use it.

    vocab_size: tokens, added ones included. special_token_ids: those that `decode` leaves out unless told.
    max_token_chars: characters of the longest token. sha256: hexadecimal digest of tokenizer.json.
    """

    def __init__(self, backend: tokenizers.Tokenizer, serialized: bytes) -> None:
        """serialized: the tokenizer.json of the backend."""
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._start_stream = choose_decoding(backend)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.max_token_chars = max(map(len, backend.get_vocab(with_added_tokens=True)))
        self.sha256 = sha256(serialized).hexdigest()
        self._token_texts: dict[int, str] = {}

    @classmethod
    def from_directory(cls, model_dir: Path) -> "Tokenizer":
        """Raises ModelError if there is no tokenizer, or none that can be read."""
        return cls(*load_backend(model_dir))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with those that the model wants around a text (beginning of sequence, say), or without.

        Raises InvalidArgumentError, field `prompt`, for text that has no ids, such as half a surrogate pair.
        """
        try:
            text.encode()
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except UnicodeEncodeError as error:
            limit = f"must be valid Unicode; character {error.start} is half a surrogate pair"
            raise InvalidArgumentError("prompt", text[error.start : error.end], limit) from None
        except Exception as error:  # the library raises no narrower one
            raise InvalidArgumentError("prompt", text, f"cannot be tokenized: {error}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Their text as a whole; ids that the tokenizer does not know are left out. See also Detokenizer."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special or not; U+FFFD for bytes that are half a character."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.decode([token_id], skip_special_tokens=False)
        return text

    def to_json(self) -> str:
        """As a tokenizer.json that has all of it."""
        return self._backend.to_str()

    def start_stream(self, prompt_token_ids: Sequence[int]) -> TextStream:
        return self._start_stream(prompt_token_ids)
