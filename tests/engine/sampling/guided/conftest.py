"""A compiler for the demo model; its worker serves all tests of a run."""

from collections.abc import Callable, Iterator

import pytest

from engine.demo import MODEL_DIR
from engine.demo.tokenizer import END_ID, VOCAB_SIZE
from engine.sampling.guided.compiler import GrammarCompiler
from engine.text.tokenizer import Tokenizer
from tests.engine.sampling.guided.walks import Walker

MakeCompiler = Callable[..., GrammarCompiler]


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    return (MODEL_DIR / "tokenizer.json").read_text()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(MODEL_DIR)


@pytest.fixture(scope="session")
def compiler(tokenizer_json: str) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer_json, VOCAB_SIZE, [END_ID])
    yield compiler
    compiler.close()


@pytest.fixture
def make_compiler(tokenizer_json: str) -> Iterator[MakeCompiler]:
    """Compilers of a test's own."""
    made = []

    def make(**options: object) -> GrammarCompiler:
        given = {"tokenizer_json": tokenizer_json, "vocab_size": VOCAB_SIZE, "eos_token_ids": [END_ID]}
        made.append(GrammarCompiler(**(given | options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for compiler in made:
        compiler.close()


@pytest.fixture(scope="session")
def walker(tokenizer: Tokenizer, compiler: GrammarCompiler) -> Walker:
    return Walker(tokenizer, compiler.num_mask_words, END_ID)
