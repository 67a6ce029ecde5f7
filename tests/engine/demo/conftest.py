"""The packaged model and its tokenizer, loaded once."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo import MODEL_DIR
from engine.demo.data import Encoder
from engine.demo.tokenizer import END_ID

Complete = Callable[[Sequence[str], int], list[tuple[str, bool]]]


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
def complete(model: Any) -> Complete:
    """The prompts' greedy continuations, each with whether the model ended it by itself."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR, padding_side="left")

    def run(prompts: Sequence[str], max_new_tokens: int) -> list[tuple[str, bool]]:
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        continuations = generated[:, inputs["input_ids"].shape[1] :].tolist()
        return [(tokenizer.decode(ids, skip_special_tokens=True), END_ID in ids) for ids in continuations]

    return run
