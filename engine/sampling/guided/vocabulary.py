"""A model's vocabulary as the library wants it."""

import json
from collections.abc import Collection, Sequence
from typing import Any

import tokenizers
from llguidance import LLTokenizer


class VocabularyError(Exception):
    """This vocabulary cannot be guided; the message says why."""


def load_vocabulary(tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """vocab_size: the model's, at least the tokenizer's; ids beyond the tokenizer's are never allowed.

    Byte-level tokenizers and those with byte tokens. Takes some 0.7 s for 128k tokens, and holds the GIL.
    Raises VocabularyError.
    """
    if not eos_token_ids:
        raise VocabularyError("the model has no end-of-sequence token")
    try:
        return LLTokenizer(
            _with_special(tokenizer_json, eos_token_ids), n_vocab=vocab_size, eos_token=list(eos_token_ids)
        )
    except ValueError as error:
        raise VocabularyError(f"the model's tokenizer does not allow it: {error}") from error


def _with_special(tokenizer_json: str, token_ids: Collection[int]) -> str:
    """The same with these tokens special: else their text could be part of an output, and end it."""
    plain: dict[str, Any] = json.loads(tokenizer_json)
    added = {token["id"]: token for token in plain.get("added_tokens", [])}
    if all(token_id in added and added[token_id]["special"] for token_id in token_ids):
        return tokenizer_json
    backend = tokenizers.Tokenizer.from_str(tokenizer_json)
    added |= {token_id: _special(token_id, backend.id_to_token(token_id)) for token_id in token_ids}
    plain["added_tokens"] = [added[token_id] for token_id in sorted(added)]
    return json.dumps(plain)


def _special(token_id: int, content: str | None) -> dict[str, Any]:
    if content is None:
        raise VocabularyError(f"the end-of-sequence id {token_id} is none of the tokenizer's")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": True}
