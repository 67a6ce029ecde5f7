"""The same models on a GPU. Token for token in float32; steps overlap."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu
Make = Callable[..., Any]


@pytest.mark.parametrize(
    "name", ["llama3.1-tied", "llama-biases", "mistral-windowed", "qwen2-mixed", "qwen3"]
)
def test_greedy_tokens_with_two_steps_in_flight(
    name: str, tiny_model: Make, server: Make, prompts: list[list[int]]
) -> None:
    expected = [tiny_model(name).greedy(prompt) for prompt in prompts]
    on_gpu = server(name, num_blocks=64, device="cuda")
    assert on_gpu.engine.runner.max_steps_in_flight == 2
    assert on_gpu.serve(prompts, steps_in_flight=2).texts == expected


def test_preempted_sequences_resume(tiny_model: Make, server: Make, prompts: list[list[int]]) -> None:
    expected = [tiny_model("llama2").greedy(prompt) for prompt in prompts]
    served = server("llama2", num_blocks=19, device="cuda").serve(prompts, steps_in_flight=2)
    assert served.stats.num_preemptions > 0
    assert served.texts == expected


def test_a_step_stays_within_what_was_set_aside(server: Make, prompts: list[list[int]]) -> None:
    engine = server("qwen3", num_blocks=64, device="cuda", dtype="bfloat16")
    memory = engine.engine.memory
    assert dict(memory.set_aside)["activations"] > 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.serve(prompts, steps_in_flight=2)
    assert torch.cuda.max_memory_allocated() - before <= dict(memory.set_aside)["activations"]
