"""The runner under the real scheduler: whatever happens to a sequence, its tokens stay the same."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.sampling.params import SamplingParams
from scheduler.request import FinishReason
from scheduler.step import Chunk, NewRow, StepInput

Make = Callable[..., Any]
GREEDY = SamplingParams(ignore_eos=True)
NAMES = ["llama3.1-tied", "mistral-windowed", "qwen2-mixed"]


@pytest.mark.parametrize("name", NAMES)
def test_steps_in_flight_change_nothing(name: str, server: Make, prompts: list[list[int]]) -> None:
    one = server(name).serve(prompts)
    two = server(name).serve(prompts, steps_in_flight=2)
    assert two.texts == one.texts


@pytest.mark.parametrize("name", NAMES)
def test_preempted_sequences_resume(name: str, server: Make, prompts: list[list[int]]) -> None:
    """Four sequences of up to 10 blocks a layer group, in a pool that holds less than two of the longest."""
    roomy = server(name).serve(prompts)
    tight = server(name, num_blocks=38 if name == "qwen2-mixed" else 19).serve(prompts)
    assert roomy.stats.num_preemptions == 0
    assert tight.stats.num_preemptions > 0 or name == "mistral-windowed"
    assert tight.texts == roomy.texts


@pytest.mark.parametrize("name", NAMES)
def test_prefix_cache_hits(name: str, server: Make, prompts: list[list[int]]) -> None:
    warm = server(name, num_blocks=100)
    first = warm.serve(prompts)
    again = warm.serve([[*prompt, 3, 5] for prompt in prompts])
    cold = server(name).serve([[*prompt, 3, 5] for prompt in prompts])
    cached = [again.summaries[str(i), 0].num_cached_tokens for i in range(len(prompts))]
    assert [first.summaries[str(i), 0].num_cached_tokens for i in range(len(prompts))] == [0] * len(prompts)
    assert cached == [len(prompt) // 16 * 16 for prompt in prompts]
    assert again.texts == cold.texts


@pytest.mark.parametrize("name", NAMES)
def test_forks_share_a_prompt(name: str, server: Make, prompts: list[list[int]]) -> None:
    alone = server(name).serve(prompts, num_new_tokens=32)
    forked = server(name).serve(prompts, num_outputs=2, num_new_tokens=32)
    assert forked.texts == [text for text in alone.texts for _ in range(2)]


def test_drawn_outputs_do_not_depend_on_the_batch(server: Make, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(temperature=0.8, seed=11, num_outputs=3, ignore_eos=True)
    together = server("qwen2-mixed").serve(prompts, sampling, num_outputs=3, num_new_tokens=32)
    for i in (1, 3):
        alone = server("qwen2-mixed").serve([prompts[i]], sampling, num_outputs=3, num_new_tokens=32)
        assert alone.texts == [together.token_ids[str(i), output] for output in range(3)]
        assert len({tuple(text) for text in alone.texts}) == 3


@pytest.mark.parametrize("block_size", [4, 16, 64])
def test_block_size_changes_nothing(block_size: int, server: Make, prompts: list[list[int]]) -> None:
    expected = server("qwen2-mixed").serve(prompts).texts
    assert server("qwen2-mixed", block_size=block_size).serve(prompts).texts == expected


def test_a_prompt_alone_and_in_a_batch(server: Make, prompts: list[list[int]]) -> None:
    batch = server("llama2").serve(prompts).texts
    assert [server("llama2").serve([prompt]).texts[0] for prompt in prompts] == batch


def test_end_of_sequence_and_length(server: Make, prompts: list[list[int]]) -> None:
    text = server("llama2").serve(prompts[:1]).texts[0]
    stop = SamplingParams(stop_token_ids=(text[9],))
    served = server("llama2").serve(prompts[:1], stop)
    assert served.texts == [text[: text.index(text[9]) + 1]]
    assert served.summaries["0", 0].finish_reason is FinishReason.STOP
    served = server("llama2").serve(prompts[:1], num_new_tokens=7)
    assert served.texts == [text[:7]]
    assert served.summaries["0", 0].finish_reason is FinishReason.LENGTH


def test_bfloat16_generates(server: Make, prompts: list[list[int]]) -> None:
    """The form without in-place attention. Random weights in so few bits agree for a while only."""
    exact = server("qwen3").serve(prompts, num_new_tokens=4).texts
    rounded = server("qwen3", dtype="bfloat16").serve(prompts, num_new_tokens=4).texts
    assert [text[0] for text in rounded] == [text[0] for text in exact]


def test_a_step_that_samples_nothing(server: Make) -> None:
    runner = server("llama2").engine.runner
    row = NewRow(2, 5, 0, 0, ((3,),), 10, GREEDY, 0)
    step = StepInput(7, chunks=(Chunk(2, 0, (5, 6, 7), samples=False),), new_rows=(row,), num_tokens=3)
    output = runner.launch(step).result()
    assert (output.step_id, output.token_ids, output.finishes) == (7, [], [])


def test_a_failed_step_leaves_the_runner_usable(server: Make, prompts: list[list[int]]) -> None:
    served = server("llama2")
    expected = served.serve(prompts).texts
    token_out_of_range = Chunk(0, 0, (10**6,), samples=True)
    row = NewRow(0, 1, 0, 0, ((0,),), 1, GREEDY, 0)
    with pytest.raises(IndexError):
        served.engine.runner.launch(StepInput(0, chunks=(token_out_of_range,), new_rows=(row,), num_tokens=1))
    assert served.serve(prompts).texts == expected
