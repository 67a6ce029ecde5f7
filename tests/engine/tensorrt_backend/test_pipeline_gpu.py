"""What requests ask of logits and stopping, through the TensorRT backend: as on the torch backend."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.sampling.params import SamplingParams
from scheduler.beams import BeamParams
from scheduler.request import Request
from tests.engine.conftest import Server
from tests.engine.custom_cases import CUSTOM_WISHES, write_plugin
from tests.engine.guided_checks import check_guided_rows
from tests.engine.logprob_checks import check_logprobs

pytestmark = pytest.mark.gpu
Make = Callable[..., Any]

_RANDOM = SamplingParams(temperature=0.9, seed=3, ignore_eos=True)
# One of each, and several at once: rows of a batch mix freely.
WISHES = [
    SamplingParams(ignore_eos=True),
    SamplingParams(ignore_eos=True, repetition_penalty=1.3),
    replace(_RANDOM, presence_penalty=0.7, frequency_penalty=0.3, penalize_prompt=True),
    SamplingParams(ignore_eos=True, no_repeat_ngram_size=2),
    SamplingParams(ignore_eos=True, bad_word_ids=((17,), (5, 9), (20, 21, 22))),
    replace(_RANDOM, logit_bias=((40, 4.0), (41, -9.0)), top_k=30),
    replace(_RANDOM, allowed_token_ids=tuple(range(10, 60)), typical_p=0.8),
    replace(_RANDOM, top_p=0.9, top_p_decay=0.8, top_p_min=0.2, top_p_reset_id=11),
    replace(_RANDOM, repetition_penalty=0.8, no_repeat_ngram_size=3, min_p=0.02, bad_word_ids=((30, 31),)),
    replace(_RANDOM, logprobs=4),
]


@pytest.fixture
def gpu_server(server: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """float32, because random models have near ties; four sequences."""
    plan_dir: Path = tmp_path_factory.mktemp("plans")

    def make(name: str, num_blocks: int = 64, **changes: Any) -> Any:
        given = {"device": "cuda", "backend": "tensorrt", "plan_dir": plan_dir, "dtype": "float32"} | changes
        return server(name, num_blocks=num_blocks, **given)

    return make


@pytest.mark.parametrize("num_blocks", [64, 16])
def test_wishes_mixed_in_a_batch(
    num_blocks: int, server: Make, gpu_server: Make, prompts: list[list[int]]
) -> None:
    """With room for all, and with preemptions."""
    requests = [(prompts[index % 4], wish) for index, wish in enumerate(WISHES)]
    on_cpu = server("llama2").serve_each(requests, num_new_tokens=32)
    made = gpu_server("llama2", num_blocks)
    on_gpu = made.serve_each(requests, num_new_tokens=32, steps_in_flight=2)
    assert on_gpu.token_ids == on_cpu.token_ids
    assert on_gpu.stats.num_preemptions > 0 or num_blocks == 64


def test_logprobs(tiny_model: Make, gpu_server: Make, prompts: list[list[int]]) -> None:
    check_logprobs(gpu_server("llama2"), tiny_model("llama2"), prompts, steps_in_flight=2)


@pytest.mark.parametrize("num_blocks", [64, 16])
def test_grammars(num_blocks: int, gpu_server: Make, prompts: list[list[int]]) -> None:
    check_guided_rows(gpu_server("llama2", num_blocks), prompts, steps_in_flight=2)


@pytest.mark.parametrize("count", [2, 4])  # all in graphs; and with a classic one, for which none can be
def test_processors_and_criteria_of_plugins(
    count: int, server: Make, gpu_server: Make, prompts: list[list[int]], tmp_path: Path
) -> None:
    plugins = (write_plugin(tmp_path),)
    requests = list(zip(prompts[:count], CUSTOM_WISHES[:count], strict=True))
    expected = server("llama2", plugins=plugins).serve_each(requests, num_new_tokens=24)
    made = gpu_server("llama2", plugins=plugins)
    found = made.serve_each(requests, num_new_tokens=24, steps_in_flight=2)
    assert found.token_ids == expected.token_ids
    assert found.summaries["1", 0].criterion == expected.summaries["1", 0].criterion == 0
    assert (made.engine.runner.num_ungraphed_steps > 0) == (count == 4)


def test_beam_search(server: Make, gpu_server: Make, prompts: list[list[int]]) -> None:
    """Two, one after the other for want of rows: as on the CPU, where they equal those of transformers."""

    def serve(made: Server, steps_in_flight: int) -> dict[tuple[str, int], tuple[list[int], float | None]]:
        for index, prompt in enumerate(prompts[:2]):
            beam = BeamParams(width=3, stop_token_ids=(7, 9))
            sampling = SamplingParams(beam=beam, num_outputs=2, ignore_eos=True)
            made.scheduler.add(Request(str(index), prompt, 12, sampling, 2, beam=beam))
        found = made.serve_each([], steps_in_flight=steps_in_flight)
        return {key: (ids, found.summaries[key].score) for key, ids in found.token_ids.items()}

    expected, found = serve(server("llama2"), 1), serve(gpu_server("llama2"), 2)
    assert expected.keys() == found.keys()
    for key, (token_ids, score) in expected.items():
        assert found[key][0] == token_ids
        assert found[key][1] == pytest.approx(score, abs=1e-3)
