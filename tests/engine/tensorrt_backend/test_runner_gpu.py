"""The TensorRT backend, token for token against transformers: batches, chunks, prefix hits, preemption, n."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.sampling.params import SamplingParams
from tests.engine.conftest import MODELS

pytestmark = pytest.mark.gpu
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of tiny models are the same for many of them."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def gpu_server(server: Make, plan_dir: Path) -> Make:
    """float32, because random models have near ties; four sequences, 64 blocks."""

    def make(name: str, num_blocks: int = 64, **changes: Any) -> Any:
        given = {"device": "cuda", "backend": "tensorrt", "plan_dir": plan_dir, "dtype": "float32", **changes}
        return server(name, num_blocks=num_blocks, **given)

    return make


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_batched_with_chunked_prefill(
    name: str, tiny_model: Make, gpu_server: Make, prompts: list[list[int]]
) -> None:
    expected = [tiny_model(name).greedy(prompt) for prompt in prompts]
    made = gpu_server(name)
    assert made.engine.name == "tensorrt"
    assert made.serve(prompts, steps_in_flight=2).texts == expected
    assert made.serve(prompts[1:2], steps_in_flight=2).texts == expected[1:2]


def test_prefix_hits(tiny_model: Make, gpu_server: Make, prompts: list[list[int]]) -> None:
    warm = gpu_server("qwen2-mixed", num_blocks=100)
    warm.serve(prompts, steps_in_flight=2)
    longer = [[*prompt, 3, 5] for prompt in prompts]
    served = warm.serve(longer, steps_in_flight=2)
    assert served.texts == [tiny_model("qwen2-mixed").greedy(prompt) for prompt in longer]
    cached = [served.summaries[str(i), 0].num_cached_tokens for i in range(len(prompts))]
    assert cached == [len(prompt) // 16 * 16 for prompt in prompts]


def test_preempted_sequences_resume(tiny_model: Make, gpu_server: Make, prompts: list[list[int]]) -> None:
    expected = [tiny_model("llama2").greedy(prompt) for prompt in prompts]
    served = gpu_server("llama2", num_blocks=19).serve(prompts, steps_in_flight=2)
    assert served.stats.num_preemptions > 0
    assert served.texts == expected


def test_drawn_outputs_equal_those_of_the_torch_backend(
    server: Make, gpu_server: Make, prompts: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=11, num_outputs=3, ignore_eos=True)
    on_cpu = server("qwen3").serve(prompts[:3], sampling, num_outputs=3, num_new_tokens=32)
    on_gpu = gpu_server("qwen3").serve(
        prompts[:3], sampling, num_outputs=3, steps_in_flight=2, num_new_tokens=32
    )
    assert on_gpu.texts == on_cpu.texts


def test_stop_ids_and_lengths(gpu_server: Make, prompts: list[list[int]]) -> None:
    made = gpu_server("llama2")
    text = made.serve(prompts[:1]).texts[0]
    stopped = made.serve(prompts[:1], SamplingParams(stop_token_ids=(text[9],)), steps_in_flight=2).texts[0]
    assert stopped == text[: text.index(text[9]) + 1]


@pytest.mark.parametrize("block_size", [4, 64])
def test_block_size_changes_nothing(
    block_size: int, tiny_model: Make, gpu_server: Make, prompts: list[list[int]]
) -> None:
    expected = [tiny_model("mistral-windowed").greedy(prompt) for prompt in prompts]
    made = gpu_server("mistral-windowed", block_size=block_size, num_blocks=64 * 16 // block_size)
    assert made.serve(prompts, steps_in_flight=2).texts == expected


def test_a_second_start_takes_everything_from_disk(gpu_server: Make, prompts: list[list[int]]) -> None:
    first = gpu_server("qwen3", dtype="bfloat16")
    again = gpu_server("qwen3", dtype="bfloat16")
    assert again.engine.start.details == first.engine.start.details  # measured once
    assert again.serve(prompts).texts == first.serve(prompts).texts


def test_a_step_allocates_nothing_that_was_not_set_aside(gpu_server: Make, prompts: list[list[int]]) -> None:
    made = gpu_server("qwen3")
    made.serve(prompts, steps_in_flight=2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made.serve(prompts, steps_in_flight=2)
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
