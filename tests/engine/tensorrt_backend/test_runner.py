"""The runner itself, without a GPU: kernels in Triton's interpreter, segments by torch, the real scheduler.

Token for token against transformers. test_runner_gpu.py has the plans, the graphs and the sizes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.sampling.params import SamplingParams
from engine.serving.metrics.steps import CountsBuckets
from scheduler.step import Chunk, NewRow, StepInput
from tests.engine.conftest import Server
from tests.engine.custom_cases import CUSTOM_WISHES, write_plugin
from tests.engine.guided_checks import check_guided_rows
from tests.engine.logprob_checks import check_logprobs
from tests.support.host_runner import build_on_host

Make = Callable[..., Any]
NUM_NEW_TOKENS = 4


@pytest.mark.parametrize("name", ["llama3.1-tied", "qwen2-mixed"])
def test_greedy_tokens_in_a_batch_with_chunked_prefill(
    name: str, tiny_model: Make, prompts: list[list[int]]
) -> None:
    model = tiny_model(name)
    server = Server(build_on_host(model.path, warm_up=name == "qwen2-mixed"))
    served = server.serve(prompts[:3], num_new_tokens=NUM_NEW_TOKENS, steps_in_flight=2)
    assert served.texts == [model.greedy(prompt, NUM_NEW_TOKENS) for prompt in prompts[:3]]


def test_preemption_and_prefix_hits(tiny_model: Make, prompts: list[list[int]]) -> None:
    """Three blocks for two sequences that need two each in the end."""
    model, short = tiny_model("llama2"), [prompts[1][:15], prompts[2][:16]]
    server = Server(build_on_host(model.path, num_blocks=3))
    expected = [model.greedy(prompt, NUM_NEW_TOKENS) for prompt in short]
    served = server.serve(short, num_new_tokens=NUM_NEW_TOKENS, steps_in_flight=2)
    assert served.stats.num_preemptions > 0
    assert served.texts == expected
    again = server.serve([[*short[1], 5]], num_new_tokens=1)
    assert again.summaries["0", 0].num_cached_tokens == 16
    assert again.texts == [model.greedy([*short[1], 5], 1)]


def test_drawn_outputs_are_those_of_the_torch_backend(
    tiny_model: Make, server: Make, prompts: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=11, num_outputs=2, ignore_eos=True)
    how = {"num_outputs": 2, "num_new_tokens": NUM_NEW_TOKENS}
    expected = server("qwen2").serve(prompts[:1], sampling, **how)
    found = Server(build_on_host(tiny_model("qwen2").path)).serve(prompts[:1], sampling, **how)
    assert found.texts == expected.texts


def test_logprobs_of_prompts_and_outputs(tiny_model: Make, prompts: list[list[int]]) -> None:
    model = tiny_model("llama2")
    server = Server(build_on_host(model.path))
    check_logprobs(server, model, prompts[:2], num_new_tokens=NUM_NEW_TOKENS, steps_in_flight=2)


def test_grammars_hold_their_rows_alone(tiny_model: Make, prompts: list[list[int]]) -> None:
    """With two steps in flight: the model of one runs before the tokens of the other are known."""
    short = [prompt[:7] for prompt in prompts]
    check_guided_rows(Server(build_on_host(tiny_model("llama2").path)), short, steps_in_flight=2)


def test_processors_and_criteria_of_plugins(
    tiny_model: Make, server: Make, prompts: list[list[int]], tmp_path: Path
) -> None:
    """Captured ones in a step, classic ones in another, and both beside rows that have none."""
    plugin = write_plugin(tmp_path)
    requests = [(prompt[:9], wish) for prompt, wish in zip(prompts, CUSTOM_WISHES, strict=True)]
    expected = server("llama2", plugins=(plugin,)).serve_each(requests, num_new_tokens=6)
    found = Server(build_on_host(tiny_model("llama2").path, plugins=(plugin,))).serve_each(
        requests, num_new_tokens=6, steps_in_flight=2
    )
    assert found.token_ids == expected.token_ids
    assert found.summaries["1", 0].criterion == expected.summaries["1", 0].criterion == 0
    plain = server("llama2").serve([prompts[3][:9]], num_new_tokens=6)
    assert found.token_ids["3", 0] == plain.texts[0]
    for made in (expected, found):
        assert all(token_id % 2 for token_id in made.token_ids["2", 0])


def test_rows_that_did_not_change_are_not_sent_again(tiny_model: Make) -> None:
    built = build_on_host(tiny_model("llama2").path)
    runner: Any = built.runner
    row = NewRow(0, 3, 0, 0, ((5,),), 9, SamplingParams(), 0)
    chunk = Chunk(0, 0, (7, 8, 9), samples=True)
    runner.launch(StepInput(0, chunks=(chunk,), new_rows=(row,), num_tokens=3)).result()
    sent = []
    for step_id in (1, 2, 3):
        before = runner._uploads.num_uploads
        runner.launch(StepInput(step_id, decode_rows=(0,), num_tokens=1)).result()
        sent.append(runner._uploads.num_uploads - before)
    assert sent == [1, 0, 0]


def test_padding_is_counted(tiny_model: Make) -> None:
    built = build_on_host(tiny_model("llama2").path)
    assert isinstance(built.runner, CountsBuckets), "metrics find it"
    runner: Any = built.runner
    row = NewRow(0, 3, 0, 0, ((5,),), 9, SamplingParams(), 0)
    chunk = Chunk(0, 0, (7, 8, 9), samples=True)
    runner.launch(StepInput(0, chunks=(chunk,), new_rows=(row,), num_tokens=3)).result()
    of_chunk = runner._routed.tokens.bucket_for(3) - 3
    assert runner.num_padding_tokens == of_chunk
    for step_id in (1, 2):
        runner.launch(StepInput(step_id, decode_rows=(0,), num_tokens=1)).result()
    of_decode = runner._routed.decode.bucket_for(1) - 1
    assert runner.num_padding_tokens == of_chunk + 2 * of_decode > 0


def test_a_step_that_fails_leaves_the_others(tiny_model: Make, prompts: list[list[int]]) -> None:
    model = tiny_model("llama2")
    built = build_on_host(model.path)
    wrong = NewRow(0, 3, 0, 0, ((5,),), 9, "not sampling parameters", 0)
    chunk = Chunk(0, 0, (7, 8, 9), samples=True)
    with pytest.raises(AssertionError):
        built.runner.launch(StepInput(0, chunks=(chunk,), new_rows=(wrong,), num_tokens=3))
    assert Server(built).serve(prompts[:1], num_new_tokens=4).texts == [model.greedy(prompts[0], 4)]
