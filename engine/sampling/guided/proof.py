"""Whether a grammar can be used at all, tried where it can do no harm.

It is built and walked for a few tokens, under the limits that it will have later, and on a smaller stack.
These are counts, so what goes well here goes well in the server, which builds the same matcher from the same
text with the same library, in the time it took here and without the GIL. What does not go well may take all
time, all memory or the process with it: this is to run in one that can be spared (see `worker`).
"""

import time
from random import Random

from llguidance import LLMatcher, LLTokenizer

from engine.sampling.guided.limits import MAX_STEP_SECONDS, PROOF_TOKENS, parser_limits
from engine.sampling.guided.spec import GuidedKind


class RefusedError(Exception):
    """The grammar cannot be used; the message is fit for whoever sent it."""


def prove(vocabulary: LLTokenizer, kind: GuidedKind, grammar: str) -> LLMatcher:
    """grammar: of that kind, in the library's format. What it was tried with. Raises RefusedError."""
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=parser_limits(kind))
    _check(matcher)
    eos_token_ids, rng = set(vocabulary.eos_tokens), Random(0)
    for _ in range(PROOF_TOKENS):
        start = time.thread_time()
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        _check(matcher)
        token_id = _draw(allowed, eos_token_ids, rng)
        if token_id is None:
            break
        matcher.consume_token(token_id)
        _check(matcher)
        if (seconds := time.thread_time() - start) > MAX_STEP_SECONDS:
            raise RefusedError(f"one token takes {seconds:.2f} s, more than {MAX_STEP_SECONDS:g} s")
    return matcher


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise RefusedError(library_words(matcher))


def library_words(matcher: LLMatcher, max_chars: int = 400) -> str:
    """What the library says is wrong, on one line. It quotes the grammar, which may be long."""
    words = matcher.get_error().partition("<backtrace>")[0].replace("<non-verbose/>", "")
    if words.startswith("NoExtensionBias"):
        return "nothing can match it"
    lines = [_shorten(" ".join(line.split())) for line in words.splitlines()]
    return " ".join(line for line in lines if line.strip("^… "))[:max_chars]


def _shorten(line: str) -> str:
    return line if len(line) <= 150 else f"{line[:50]} … {line[-90:]}"


def _draw(allowed: int, eos_token_ids: set[int], rng: Random) -> int | None:
    """Some allowed token that is no end, if there is one. allowed: bit i is token i."""
    for token_id in eos_token_ids:
        allowed &= ~(1 << token_id)
    if not allowed:
        return None
    skipped = rng.randrange(allowed.bit_length())  # the highest one is left
    rest = allowed >> skipped
    return skipped + (rest & -rest).bit_length() - 1
