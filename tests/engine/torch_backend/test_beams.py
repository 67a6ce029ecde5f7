"""Beam search through the real scheduler, KV cache and torch backend, against transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.sampling.params import SamplingParams
from scheduler.beams import BeamParams, EarlyStopping
from scheduler.request import FinishReason, Request, SequenceOutput, SequenceSummary
from tests.engine.conftest import Server, TinyModel

Make = Callable[..., Any]
Texts = list[list[int]]
NUM_NEW_TOKENS = 24
STOPS = (5, 17, 40, 77)  # on their way, or none of the texts would stop
EARLY: dict[EarlyStopping, bool | str] = {"true": True, "false": False, "never": "never"}


def search(server: Server, prompts: Texts, params: SamplingParams) -> list[list[tuple[list[int], float]]]:
    """Of each prompt, its outputs and their scores. All at once."""
    assert params.beam is not None
    for index, prompt in enumerate(prompts):
        request = Request(str(index), prompt, NUM_NEW_TOKENS, params, params.num_outputs, beam=params.beam)
        server.scheduler.add(request)
    found: list[list[tuple[list[int], float]]] = [[] for _ in prompts]
    while server.scheduler.has_work:
        step = server.scheduler.schedule(0.0)
        assert step is not None
        for output in server.scheduler.update(server.engine.runner.launch(step).result(), 0.0):
            found[int(output.request_id)].append((list(output.token_ids), _score(output, params.beam)))
    server.kv.check_invariants()
    assert server.kv.num_free_blocks == server.kv.num_blocks
    return found


def _score(output: SequenceOutput, beam: BeamParams) -> float:
    summary = output.summary
    assert isinstance(summary, SequenceSummary)
    assert summary.score is not None
    stopped = output.token_ids[-1] in beam.stop_token_ids
    assert summary.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    return summary.score


def reference(
    model: TinyModel, prompt: list[int], params: SamplingParams, **more: Any
) -> tuple[Texts, list[float]]:
    """transformers' own texts and scores."""
    beam = params.beam
    assert beam is not None
    ids = torch.tensor([prompt])
    out = model.reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_NEW_TOKENS,
        num_beams=beam.width,
        num_return_sequences=params.num_outputs,
        length_penalty=beam.length_penalty,
        early_stopping=EARLY[beam.early_stopping],
        eos_token_id=list(beam.stop_token_ids) or None,
        pad_token_id=-1,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    texts = [[token for token in text[len(prompt) :] if token != -1] for text in out.sequences.tolist()]
    return texts, out.sequences_scores.tolist()


def check(model: TinyModel, server: Server, prompts: Texts, params: SamplingParams, **more: Any) -> Texts:
    """All texts."""
    texts = []
    for prompt, found in zip(prompts, search(server, prompts, params), strict=True):
        expected, scores = reference(model, prompt, params, **more)
        assert [text for text, _ in found] == expected
        assert [score for _, score in found] == pytest.approx(scores, rel=1e-3, abs=1e-3)
        texts += expected
    return texts


@pytest.mark.parametrize("early_stopping", EARLY)
@pytest.mark.parametrize(("width", "length_penalty"), [(2, 1.0), (4, 0.5), (4, 2.0), (8, -1.0)])
def test_equals_transformers(
    early_stopping: EarlyStopping,
    width: int,
    length_penalty: float,
    tiny_model: Make,
    server: Make,
    prompts: Texts,
) -> None:
    beam = BeamParams(width, length_penalty, early_stopping, stop_token_ids=STOPS)
    params = SamplingParams(beam=beam, num_outputs=width, ignore_eos=True)
    engine = server("llama2", max_num_seqs=9).engine
    texts = check(tiny_model("llama2"), Server(engine, max_num_seqs=9), prompts[:3], params)
    assert length_penalty > 1 or any(len(text) < NUM_NEW_TOKENS for text in texts)


@pytest.mark.parametrize("name", ["mistral-windowed", "qwen2-mixed"])
def test_windows(name: str, tiny_model: Make, server: Make, prompts: Texts) -> None:
    params = SamplingParams(beam=BeamParams(4), num_outputs=2, ignore_eos=True)
    check(tiny_model(name), server(name), prompts, params)


@pytest.mark.parametrize(
    "changes",
    [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 20}],
    ids=lambda changes: next(iter(changes)),
)
def test_processors_change_the_log_probabilities(
    changes: dict[str, Any], tiny_model: Make, server: Make, prompts: Texts
) -> None:
    beam = BeamParams(4, stop_token_ids=STOPS)
    params = SamplingParams(beam=beam, num_outputs=4, ignore_eos=True, stop_token_ids=STOPS, **changes)
    model, plain = tiny_model("qwen3"), SamplingParams(beam=beam, num_outputs=4, ignore_eos=True)
    texts = check(model, server("qwen3"), prompts, params, **changes)
    assert texts != [text for prompt in prompts for text in reference(model, prompt, plain)[0]]


@pytest.mark.parametrize("num_blocks", [29, 33])
def test_preempted_beams(num_blocks: int, tiny_model: Make, server: Make, prompts: Texts) -> None:
    """Blocks of 4 tokens: 29 hold the longest text once, and a search has four."""
    params = SamplingParams(beam=BeamParams(4, stop_token_ids=STOPS), num_outputs=4, ignore_eos=True)
    small = server("qwen3", num_blocks=num_blocks, block_size=4, max_model_len=116)
    check(tiny_model("qwen3"), small, prompts, params)
    assert small.scheduler.stats().num_preemptions > 0


def test_beside_other_requests(tiny_model: Make, server: Make, prompts: Texts) -> None:
    """The same with rows that sample, in the same steps."""
    model, mixed = tiny_model("qwen3"), server("qwen3")
    greedy = SamplingParams(ignore_eos=True)
    mixed.scheduler.add(Request("greedy", prompts[1], NUM_NEW_TOKENS, greedy))
    params = SamplingParams(beam=BeamParams(3, stop_token_ids=STOPS), num_outputs=3, ignore_eos=True)
    mixed.scheduler.add(Request("beams", prompts[0], NUM_NEW_TOKENS, params, 3, beam=params.beam))
    texts: dict[tuple[str, int], list[int]] = {}
    while mixed.scheduler.has_work:
        step = mixed.scheduler.schedule(0.0)
        for output in mixed.scheduler.update(mixed.engine.runner.launch(step).result(), 0.0):
            texts.setdefault((output.request_id, output.output_index), []).extend(output.token_ids)
    assert texts["greedy", 0] == model.greedy(prompts[1], NUM_NEW_TOKENS)
    assert [texts["beams", index] for index in range(3)] == reference(model, prompts[0], params)[0]
