import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.byte_fallback import MAX_HELD_BYTES
from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer

KINDS = ["byte_level", "byte_fallback", "unigram", "word_piece"]
TEXTS = [
    "",
    "Hello world",
    " it's a test",
    "你好世界 👩‍👩‍👧 and 10 € — né <tool call> </s> done",
    "def f(x):\n    return x + 1\n",
    "Ünïcödé ｡◕‿◕｡ 𐍈𐍅 \u200d",
]
# Of any tokenizer here, and beyond: byte tokens, special tokens, ids that do not exist.
TOKEN_IDS = st.lists(st.one_of(st.integers(0, 440), st.integers(200, 262)), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=6)


def stream(
    tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int], cuts: list[int]
) -> list[str]:
    """What comes out after each piece, and at the end."""
    detokenizer = Detokenizer(tokenizer, prompt_token_ids=prompt)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(token_ids)), len(token_ids)]
    pieces = [detokenizer.add(token_ids[start:end]) for start, end in pairwise(bounds)]
    return [*pieces, detokenizer.flush()]


def ids_of(backend: tokenizers.Tokenizer, tokens: Sequence[str]) -> list[int]:
    vocabulary = backend.get_vocab()
    return [vocabulary[token] for token in tokens]


def byte_ids(backend: tokenizers.Tokenizer, data: bytes) -> list[int]:
    return ids_of(backend, [f"<0x{byte:02X}>" for byte in data])


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *token_ids])
    assert whole.startswith(before)
    return whole[len(before) :]


@pytest.mark.parametrize("prompt", ["", "Hello", "it's "])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(TOKEN_IDS, CUTS)
def test_any_tokens_in_any_pieces(
    all_tokenizers: dict[str, Tokenizer], kind: str, prompt: str, token_ids: list[int], cuts: list[int]
) -> None:
    tokenizer = all_tokenizers[kind]
    prompt_ids = tokenizer.encode(prompt)
    joined = "".join(stream(tokenizer, prompt_ids, token_ids, cuts))
    assert joined == continuation(tokenizer, prompt_ids, token_ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_token_by_token(all_tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = all_tokenizers[kind]
    token_ids = tokenizer.encode(text)
    cuts = list(range(len(token_ids)))
    assert "".join(stream(tokenizer, [], token_ids, cuts)) == tokenizer.decode(token_ids)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_valid_text_is_never_shown_by_halves(all_tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = all_tokenizers["byte_level"]
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(token_ids)
    shown = ""
    for piece in stream(tokenizer, [], token_ids, list(range(len(token_ids)))):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_character_that_the_prompt_began_is_completed(
    all_tokenizers: dict[str, Tokenizer], backends: dict[str, tokenizers.Tokenizer], kind: str
) -> None:
    spellings = {
        "byte_level": ["ð", "Ł", "ĺ", "Ģ"],
        "byte_fallback": ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"],
    }
    token_ids = ids_of(backends[kind], spellings[kind])
    a = all_tokenizers[kind].encode("a", add_special_tokens=False)
    for num_begun in range(1, 4):
        begun, finishing = token_ids[:num_begun], token_ids[num_begun:]
        pieces = stream(all_tokenizers[kind], [*a, 1, *begun], [*finishing, *a], [])
        assert "".join(pieces).startswith("😀")


def test_a_character_that_the_prompt_finished_is_not_repeated(
    all_tokenizers: dict[str, Tokenizer], backends: dict[str, tokenizers.Tokenizer]
) -> None:
    prompt = byte_ids(backends["byte_fallback"], "é😀".encode())
    generated = byte_ids(backends["byte_fallback"], "😀".encode())
    assert "".join(stream(all_tokenizers["byte_fallback"], prompt, generated, [1])) == "😀"


def test_a_long_run_of_byte_tokens_streams(
    all_tokenizers: dict[str, Tokenizer], backends: dict[str, tokenizers.Tokenizer]
) -> None:
    text = "ཀ" * 100
    token_ids = byte_ids(backends["byte_fallback"], text.encode())
    detokenizer = Detokenizer(all_tokenizers["byte_fallback"])
    shown = ""
    for count, token_id in enumerate(token_ids, start=1):
        shown += detokenizer.add([token_id])
        assert count - len(shown.encode()) <= MAX_HELD_BYTES
    assert shown + detokenizer.flush() == text


def test_a_long_malformed_run_is_as_long_as_its_bytes(
    all_tokenizers: dict[str, Tokenizer], backends: dict[str, tokenizers.Tokenizer]
) -> None:
    tokenizer = all_tokenizers["byte_fallback"]
    data = b"\xff" + "你".encode() * 50
    token_ids = [*byte_ids(backends["byte_fallback"], data), *tokenizer.encode("a", add_special_tokens=False)]
    assert "".join(stream(tokenizer, [], token_ids, [10, 20, 30])) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_tokenizer(all_tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = all_tokenizers[kind]
    wrong: list[str] = []

    def work() -> None:
        for text in TEXTS * 20:
            token_ids = tokenizer.encode(text)
            if "".join(stream(tokenizer, [], token_ids, [1, 2])) != tokenizer.decode(token_ids):
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
