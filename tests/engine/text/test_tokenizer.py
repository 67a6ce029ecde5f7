import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import InvalidArgumentError, ModelError
from engine.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "Hello world",
    "Hello   world \n\n 12345",
    "你好世界 👩‍👩‍👧 — né <tool call> né",
    "<s>Hello</s> there",
    "<extra>x<|end|>",
]


def save(backend: tokenizers.Tokenizer, folder: Path, **config: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))
    return folder


def assert_like_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.from_directory(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for add_special_tokens in (True, False):
            token_ids = ours.encode(text, add_special_tokens)
            assert token_ids == theirs.encode(text, add_special_tokens=add_special_tokens)
            for skip in (True, False):
                assert ours.decode(token_ids, skip) == theirs.decode(token_ids, skip_special_tokens=skip)
    assert ours.vocab_size == len(theirs)
    assert ours.special_token_ids >= set(theirs.all_special_ids)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "add_bos_token": True},
        {"eos_token": "<|end|>", "additional_special_tokens": ["<extra>"]},
        {"added_tokens_decoder": {"333": {"content": "<extra>", "special": False}}},
    ],
)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_ids_and_text_are_those_of_transformers(
    kind: str, config: dict[str, Any], backends: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    assert_like_transformers(save(backends[kind], tmp_path, **config))


def test_truncation_and_padding_in_the_file_are_ignored(
    backends: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    backend = tokenizers.Tokenizer.from_str(backends["byte_level"].to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    text = "Hello world, it's a test"
    expected = backends["byte_level"].encode(text).ids
    assert Tokenizer.from_directory(save(backend, tmp_path)).encode(text) == expected


def test_sha256_is_that_of_the_file(backends: dict[str, tokenizers.Tokenizer], tmp_path: Path) -> None:
    save(backends["byte_level"], tmp_path)
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert Tokenizer.from_directory(tmp_path).sha256 == digest


def test_without_tokenizer_json_transformers_converts_other_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    ours, theirs = Tokenizer.from_directory(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert ours.encode("abb ab") == theirs.encode("abb ab") == [3, 2, 5]
    assert ours.decode([3, 2, 5]) == "abb ab"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (None, ""),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"eos_token": 2}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"text": "x"}}}'),
    ],
)
def test_an_unreadable_directory_is_a_model_error_that_names_it(
    name: str | None, content: str, backends: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    if name is not None:
        save(backends["byte_level"], tmp_path)
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=name or tmp_path.name):
        Tokenizer.from_directory(tmp_path)


def test_half_a_surrogate_pair_is_refused(all_tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(InvalidArgumentError, match="character 3 is half a surrogate pair") as caught:
        all_tokenizers["byte_level"].encode("abc\ud83d")
    assert caught.value.field == "prompt"


def test_text_that_the_model_has_no_token_for_is_refused() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"))
    tokenizer = Tokenizer(backend, b"")
    assert tokenizer.encode("a") == [0]
    with pytest.raises(InvalidArgumentError, match="prompt='b': cannot be tokenized"):
        tokenizer.encode("b")
