"""A byte-level tokenizer of 128,256 tokens for models of random weights, made in a second.

It has no merges, so it encodes text byte by byte; what it is for is decoding what such a model generates, and
the vocabulary that grammars have to look through: words of syllables, with and without a space before them,
numbers and runs of punctuation, as in a trained vocabulary.
"""

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import tokenizers

_ONSETS = ["", *"bcdfghjklmnprstvwyz", "ch", "sh", "th", "st", "tr", "pr", "gr", "pl", "qu"]
_RIMES = [
    *"aeiou",
    "an",
    "en",
    "in",
    "on",
    "ar",
    "er",
    "or",
    "al",
    "el",
    "ing",
    "ion",
    "ent",
    "ess",
    "ate",
    "ous",
]
_MARKS = "{}[]():,.\"'\\/-+*=<>_;!?#&|\n\t "


def synthetic_tokenizer(vocab_size: int, num_special: int = 256) -> tokenizers.Tokenizer:
    """The last num_special tokens are special ones."""
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: index for index, token in enumerate(sorted(level.alphabet()))}
    for text in _texts():
        ((token, _),) = level.pre_tokenize_str(text)
        vocabulary.setdefault(token, len(vocabulary))
        if len(vocabulary) == vocab_size - num_special:
            break
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = level, tokenizers.decoders.ByteLevel()
    special = [
        tokenizers.AddedToken(f"<|special_{index}|>", special=True, normalized=False)
        for index in range(num_special)
    ]
    backend.add_special_tokens(special)
    assert backend.get_vocab_size() == vocab_size
    return backend


def write_tokenizer(model_dir: Path, vocab_size: int) -> None:
    synthetic_tokenizer(vocab_size).save(str(model_dir / "tokenizer.json"))


def _texts() -> Iterator[str]:
    """The same every time, without end."""
    yield from ("".join(marks) for size in (2, 3) for marks in product(_MARKS, repeat=size) if size < 3)
    yield from map(str, range(1000))
    rng = random.Random(0)
    while True:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_RIMES) for _ in range(rng.randint(1, 4)))
        yield from (word, f" {word}", f" {word.capitalize()}")
