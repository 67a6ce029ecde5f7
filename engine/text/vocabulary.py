"""What a `tokenizers` backend says about its tokens."""

import json
from typing import Any

import tokenizers

Json = dict[str, Any]


def visible_tokens(backend: tokenizers.Tokenizer) -> dict[int, str]:
    """Tokens, as the backend spells them, that decoding shows: all but special ones."""
    tokens = {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}
    for token_id, added in backend.get_added_tokens_decoder().items():
        if added.special:
            tokens.pop(token_id, None)
        else:
            tokens[token_id] = added.content
    return tokens


def decoder_parts(backend: tokenizers.Tokenizer) -> list[Json]:
    """The backend's decoder as tokenizer.json spells it, a sequence taken apart; empty without one."""
    if backend.decoder is None:
        return []
    config: Json = json.loads(backend.decoder.__getstate__())
    return list(config["decoders"]) if config["type"] == "Sequence" else [config]
