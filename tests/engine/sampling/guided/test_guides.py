"""The state of one output, and the masks of many."""

import json
from random import Random

import numpy as np
import pytest

from engine.demo.tokenizer import BEGIN_ID, END_ID, VOCAB_SIZE
from engine.errors import InvalidArgumentError
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.executor import GuideExecutor
from engine.sampling.guided.grammar import Grammar, Guide, GuideError
from engine.sampling.guided.limits import PROOF_TOKENS
from engine.sampling.guided.spec import GuidedSpec
from engine.text.tokenizer import Tokenizer
from tests.engine.sampling.guided.conftest import MakeCompiler
from tests.engine.sampling.guided.schemas import random_schema
from tests.engine.sampling.guided.walks import Walker, allowed_ids, bits
from tests.engine.text.conftest import KINDS

NUM_WORDS = VOCAB_SIZE // 32
# Every way to split the a's is another parse: rows of items grow with the output, until one is too long.
AMBIGUOUS = GuidedSpec("grammar", 'start: s\ns: s s s s s s | s s s s s | "a" | "b" | \n')


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def overgrow(grammar: Grammar) -> tuple[Guide, GuideError]:
    """An output, and its error, that passes a limit long after its grammar was proven."""
    guide, rng = grammar.start(), Random(1)
    for length in range(2000):
        try:
            guide.advance([rng.choice([i for i in allowed_ids(guide, NUM_WORDS) if i != END_ID])])
        except GuideError as error:
            assert length > PROOF_TOKENS
            return guide, error
    raise AssertionError("it passed no limit")


def test_only_the_end_follows_a_whole_output(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    guide = compiler.compile(GuidedSpec("regex", "ab?")).start()
    assert not guide.is_finished
    assert not guide.can_finish
    guide.advance(ids(tokenizer, "a"))
    assert guide.can_finish
    assert not guide.is_finished
    assert set(allowed_ids(guide, NUM_WORDS)) == {*ids(tokenizer, "b"), END_ID}
    guide.advance(ids(tokenizer, "b"))
    assert guide.is_finished
    for _ in range(2):
        assert allowed_ids(guide, NUM_WORDS) == [END_ID]
        guide.advance([END_ID])  # and more of them change nothing


def test_a_token_that_is_not_allowed(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(GuidedSpec("regex", "[0-9]+"))
    for token_ids in (ids(tokenizer, "x"), [END_ID], [BEGIN_ID], ids(tokenizer, "12x")):
        with pytest.raises(GuideError):
            grammar.start(token_ids)


def test_an_output_resumes_where_it_was(
    compiler: GrammarCompiler, walker: Walker, tokenizer: Tokenizer
) -> None:
    for seed in range(20):
        grammar = compiler.compile(GuidedSpec("json_schema", json.dumps(random_schema(Random(seed)))))
        token_ids = walker.walk(grammar.start(), Random(seed))
        guide = grammar.start()
        for length in range(len(token_ids) + 1):
            resumed = grammar.start(token_ids[:length])
            assert allowed_ids(resumed, NUM_WORDS) == allowed_ids(guide, NUM_WORDS)
            assert (resumed.is_finished, resumed.can_finish) == (guide.is_finished, guide.can_finish)
            guide.advance(token_ids[length : length + 1])


def test_outputs_of_one_grammar_do_not_mix(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(GuidedSpec("choice", choices=("left", "right")))
    left, right = grammar.start(), grammar.start()
    left.advance(ids(tokenizer, "l"))
    right.advance(ids(tokenizer, "r"))
    assert not set(allowed_ids(left, NUM_WORDS)) & set(allowed_ids(right, NUM_WORDS))
    assert set(allowed_ids(grammar.start(), NUM_WORDS)) >= {*ids(tokenizer, "l"), *ids(tokenizer, "r")}


def test_ids_beyond_the_tokenizer_are_never_allowed(
    make_compiler: MakeCompiler, tokenizer: Tokenizer
) -> None:
    compiler = make_compiler(vocab_size=1001)
    assert compiler.num_mask_words == 32
    guide = compiler.compile(GuidedSpec("regex", r"[\s\S]*")).start()
    mask = np.full(32, -1, np.int32)
    guide.fill(mask)
    assert len(bits(mask)) > 700  # of 960; a byte that begins no character is none of these
    assert max(bits(mask)) < tokenizer.vocab_size
    guide.advance([END_ID])
    guide.fill(mask)
    assert bits(mask) == [END_ID]


def test_a_model_with_fewer_tokens_than_its_tokenizer(make_compiler: MakeCompiler) -> None:
    with pytest.raises(InvalidArgumentError, match=r"guided=.*not with this model.*vocab"):
        make_compiler(vocab_size=900).compile(GuidedSpec("regex", "a"))


def test_a_model_without_an_end(make_compiler: MakeCompiler) -> None:
    with pytest.raises(InvalidArgumentError, match="no end-of-sequence"):
        make_compiler(eos_token_ids=[]).compile(GuidedSpec("regex", "a"))


def test_every_end_is_allowed_at_the_end_and_none_before(
    make_compiler: MakeCompiler, tokenizer: Tokenizer
) -> None:
    """Also one whose text the grammar allows: it would end the output there."""
    text_id = ids(tokenizer, "a")[0]
    grammar = make_compiler(eos_token_ids=[END_ID, BEGIN_ID, text_id]).compile(
        GuidedSpec("regex", "[ab]{2,3}")
    )
    guide = grammar.start()
    assert text_id not in allowed_ids(guide, NUM_WORDS)
    guide.advance(2 * ids(tokenizer, "b"))
    ends = {END_ID, BEGIN_ID, text_id}
    assert ends <= set(allowed_ids(guide, NUM_WORDS))
    for end in ends:
        ended = grammar.start([*2 * ids(tokenizer, "b"), end])
        assert ended.is_finished
        assert set(allowed_ids(ended, NUM_WORDS)) == ends


def test_a_limit_passed_late_has_the_librarys_words(compiler: GrammarCompiler) -> None:
    _, error = overgrow(compiler.compile(AMBIGUOUS))
    assert "max is 400" in str(error)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_batch_is_filled_as_each_alone(
    compiler: GrammarCompiler, tokenizer: Tokenizer, num_threads: int
) -> None:
    grammars = [compiler.compile(GuidedSpec("regex", rf"[a-{last}]{{2,9}}")) for last in "bcdefgh"]
    guides = {row: grammar.start() for row, grammar in zip((0, 2, 3, 5, 6, 8, 9), grammars, strict=True)}
    executor = GuideExecutor(num_threads)
    masks = np.full((10, NUM_WORDS), -1, np.int32)
    for _ in range(12):
        assert executor.fill(guides, masks) == {}
        for row in range(10):
            expected = allowed_ids(guides[row], NUM_WORDS) if row in guides else list(range(VOCAB_SIZE))
            assert bits(masks[row]) == expected
        assert executor.advance([(guide, bits(masks[row])[-1]) for row, guide in guides.items()]) == {}
    assert all(guide.is_finished for guide in guides.values())
    assert executor.fill({}, masks) == {}
    assert executor.advance([]) == {}


def test_an_output_that_fails_fails_alone(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(AMBIGUOUS)
    broken, _ = overgrow(grammar)
    healthy = compiler.compile(GuidedSpec("regex", "a")).start()
    masks = np.zeros((3, NUM_WORDS), np.int32)
    executor = GuideExecutor(2)
    errors = executor.fill({2: broken, 0: healthy, 1: grammar.start()}, masks)
    assert list(errors) == [2]
    assert bits(masks[0]) == ids(tokenizer, "a")
    assert set(bits(masks[1])) > set(ids(tokenizer, "b"))
    assert bits(masks[2]) == [END_ID]
    (a,) = ids(tokenizer, "a")
    astray = compiler.compile(GuidedSpec("regex", "b")).start()
    errors = executor.advance([(astray, a), (healthy, a), (broken, a)])
    assert list(errors) == [0, 2]
    assert "max is 400" in str(errors[2])
    assert list(executor.advance([(broken, a)])) == [0]
    assert executor.advance([(healthy, END_ID)]) == {}


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_kinds_of_tokenizers(make_compiler: MakeCompiler, kind: str) -> None:
    backend = KINDS[kind]()
    tokenizer = Tokenizer(backend, serialized := backend.to_str().encode())
    compiler = make_compiler(
        tokenizer_json=serialized.decode(), vocab_size=tokenizer.vocab_size, eos_token_ids=[2]
    )
    num_words = compiler.num_mask_words
    choices = ("hello world", "Crème brûlée", "你好吗 😀", "  two  spaces\n")
    grammar = compiler.compile(GuidedSpec("choice", choices=choices))
    for seed in range(40):
        token_ids = Walker(tokenizer, num_words, 2).walk(grammar.start(), Random(seed))
        stream = tokenizer.start_stream(ids(tokenizer, "Answer:"))
        assert stream.add(token_ids) + stream.flush() in choices
