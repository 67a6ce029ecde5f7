"""Words that are not to be generated, as the tokenizer writes them."""

from collections.abc import Iterator, Sequence

from engine.errors import InvalidArgumentError
from engine.text.tokenizer import Tokenizer


def spell_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token ids of each word alone and after a space, all different.

    Raises InvalidArgumentError, field `bad_words`: a word has no tokens.
    """
    return tuple(dict.fromkeys(form for word in words for form in _forms(word, tokenizer)))


def _forms(word: str, tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    alone, spaced = (_encode(text, tokenizer) for text in (word, f" {word}"))
    if not alone:
        raise InvalidArgumentError("bad_words", word, "has no tokens")
    yield alone
    if spaced[-len(alone) :] != alone:  # else the first form bans the second too
        yield spaced


def _encode(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    except InvalidArgumentError as error:
        raise InvalidArgumentError("bad_words", error.value, error.limit) from None
