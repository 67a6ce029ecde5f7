"""The packaged model and its tokenizer, loaded once."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine.demo import MODEL_DIR
from engine.demo.data import Encoder
from engine.demo.tokenizer import END_ID

Complete = Callable[[str, int], tuple[str, bool]]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="session")
def model() -> Any:
    """The packaged model in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)


@pytest.fixture(scope="session")
def complete(model: Any, tokenizer: Tokenizer) -> Complete:
    """A prompt's greedy continuation, and whether the model ended it by itself."""

    def run(prompt: str, max_new_tokens: int) -> tuple[str, bool]:
        ids: Sequence[int] = tokenizer.encode(prompt).ids
        inputs = torch.tensor([ids])
        generated = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=max_new_tokens
        )[0, len(ids) :].tolist()
        finished = generated[-1] == END_ID
        return tokenizer.decode(generated, skip_special_tokens=True), finished

    return run
