"""The `tokenizers` backend of a Hugging Face directory, set up as `transformers` would."""

import json
from collections.abc import Iterator
from pathlib import Path

import tokenizers

from engine.errors import ModelError
from engine.text.vocabulary import Json

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")


def load_backend(model_dir: Path) -> tuple[tokenizers.Tokenizer, bytes]:
    """The backend, and the tokenizer.json it comes from (or would be saved as, if the directory has none).

    tokenizer.json is taken at its word. `transformers` 5 does not do so for every class: its LlamaTokenizer
    replaces the normalizer of Llama 2, and has other ids where text begins with a space or follows a special
    token. Raises ModelError naming the file.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        backend = _convert(model_dir)
        serialized = backend.to_str().encode()
    else:
        serialized = path.read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_buffer(serialized)
        except Exception as error:  # the library raises no narrower one
            raise ModelError(f"{path}: {error}") from error
        _add_tokens(backend, model_dir / "tokenizer_config.json")
    backend.no_truncation()
    backend.no_padding()
    return backend, serialized


def _convert(model_dir: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer  # takes seconds to import, and most directories do not need it

    try:
        converted = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
    except Exception as error:  # of any library that converts a format
        raise ModelError(f"{model_dir}: no tokenizer.json, and no other tokenizer found: {error}") from error
    backend = getattr(converted, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{model_dir}: no tokenizer.json, and {type(converted).__name__} cannot make one")
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Add what only tokenizer_config.json has. Its add_bos_token does not count beside a tokenizer.json."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    try:
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        added = [token for token in _configured_tokens(config) if token.content not in known]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error!r}") from error
    backend.add_tokens(added)


def _configured_tokens(config: Json) -> Iterator[tokenizers.AddedToken]:
    for _, fields in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        flags = {name: bool(fields[name]) for name in _FLAGS if name in fields}
        yield tokenizers.AddedToken(fields["content"], **flags)
    special = [config[name] for name in _NAMED_TOKENS if config.get(name)]
    for name in _TOKEN_LISTS:
        special += config.get(name) or ()
    for token in special:
        content = token if isinstance(token, str) else token["content"]
        yield tokenizers.AddedToken(content, special=True)
