"""The model in the package: small enough, loadable, right, sure of itself.

benchmarks/demo_accuracy.py measures its accuracy on many more prompts.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.demo import MODEL_DIR
from engine.demo.data import PAD, Encoder
from engine.demo.evaluate import held_out_rows, score
from engine.demo.task import Task
from engine.demo.tasks import TASKS
from engine.demo.tokenizer import BEGIN_ID, END_ID, MAX_LENGTH, VOCAB_SIZE

Complete = Callable[[Sequence[str], int], list[tuple[str, bool]]]
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_its_files() -> None:
    names = {path.name for path in MODEL_DIR.iterdir()}
    files = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == files | {"tokenizer.json", "tokenizer_config.json"}
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 4_000_000


def test_transformers_loads_it() -> None:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.vocab_size, config.max_position_embeddings) == (VOCAB_SIZE, MAX_LENGTH)
    assert AutoModelForCausalLM.from_pretrained(MODEL_DIR).dtype == torch.bfloat16
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BEGIN_ID, END_ID)
    assert tokenizer("7 8").input_ids[0] == BEGIN_ID


def test_held_out_prompts_are_continued_rightly(complete: Complete, encoder: Encoder) -> None:
    rng = Random(3)
    asked = [
        (task, task.draw_prompt(rng, encoder.count))
        for name, task in TASKS.items()
        for _ in range(3)
        if name != "long_list"
    ]
    done = complete([prompt for _, prompt in asked], 32)
    for (task, prompt), (continuation, finished) in zip(asked, done, strict=True):
        assert task.check(prompt, continuation, finished=finished), (prompt, continuation)


@every_task
def test_the_next_token_is_clear(task: Task, model: Any, encoder: Encoder) -> None:
    count = 4 if task.name == "long_list" else 25
    rows = list(held_out_rows(task, encoder, count, seed=4))
    result = score(lambda ids: model(input_ids=ids, use_cache=False).logits, rows, model.device)
    assert result.accuracy >= 0.95
    assert result.margin(0.5) > 5
    assert result.margin(0.01) > 1


def test_different_prompts_give_different_texts(complete: Complete) -> None:
    prompts = ("7 8 9 10", "10 9 8", "Monday Tuesday", "January February", "a b c d", "12 + 7 =", "5, 10, 15")
    assert len({text for text, _ in complete(prompts, 12)}) == len(prompts)


def test_counting_is_right_at_every_position(model: Any, encoder: Encoder) -> None:
    row = encoder.row("1 2", TASKS["count_up"].solve("1 2"), MAX_LENGTH)
    assert row[-1] != PAD
    result = score(lambda ids: model(input_ids=ids, use_cache=False).logits, [row], model.device)
    assert result.accuracy == 1
    assert len(result.margins) > 2000
