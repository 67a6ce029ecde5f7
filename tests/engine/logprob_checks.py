"""Log-probabilities that an engine reports, against those of transformers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engine.sampling.params import SamplingParams
from scheduler.step import TokenLogprobs
from tests.engine.conftest import Server, TinyModel

NUM_TOP = 3
_SAMPLING = SamplingParams(
    ignore_eos=True, temperature=1.0, seed=5, logprobs=NUM_TOP, prompt_logprobs=NUM_TOP
)


def check_logprobs(
    server: Server,
    model: TinyModel,
    prompts: Sequence[list[int]],
    *,
    num_new_tokens: int = 9,
    steps_in_flight: int,
) -> None:
    """Of every token but the first of prompts and of two outputs each; requests beside them ask for none."""
    plain = replace(_SAMPLING, logprobs=None, prompt_logprobs=None)
    sampling = [_SAMPLING if index % 2 == 0 else plain for index in range(len(prompts))]
    served = server.serve_each(
        list(zip(prompts, sampling, strict=True)),
        num_outputs=2,
        num_new_tokens=num_new_tokens,
        steps_in_flight=steps_in_flight,
    )
    for index, prompt in enumerate(prompts):
        for output_index in range(2):
            key = (str(index), output_index)
            token_ids = served.token_ids[key]
            reference = torch.log_softmax(model.logits([*prompt, *token_ids]), -1)
            if index % 2:
                assert not served.logprobs[key]
                continue
            _check(served.logprobs[key], token_ids, reference[len(prompt) - 1 :])
            scores = served.prompt_logprobs[key]
            if output_index == 0:
                _check(scores, prompt[1:], reference)
            else:
                assert not scores, "once a request"


def _check(reported: Sequence[TokenLogprobs], token_ids: Sequence[int], reference: torch.Tensor) -> None:
    assert len(reported) == len(token_ids)
    for token_id, each, expected in zip(token_ids, reported, reference, strict=False):
        assert each.logprob == pytest.approx(float(expected[token_id]), abs=1e-3)
        values, ids = expected.topk(NUM_TOP)
        assert each.logprobs == pytest.approx(values.tolist(), abs=1e-3)
        assert each.token_ids == tuple(ids.tolist())
