"""Rows that ask for everything there is, and what has to be the same of both samplers."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.kernels import Tuning
from engine.sampling.params import SamplingParams
from scheduler.beams import BeamParams
from scheduler.step import NewRow
from tests.engine.sampling.kernel_cases import DEVICE, EOS, FullStep, assert_same_reports

VOCAB_SIZE = 300
SMALL = Tuning(block=16, chunk=4, tile=8, few=32, small=16, span=64, history_span=8, programs=30)
PROMPT = (1, 2, 3, 4, 1, 2, 3, 5, 1, 2)
BIASES = tuple((token_id, (-1) ** token_id * 3.0) for token_id in range(0, VOCAB_SIZE, 7))
BEAM = BeamParams(width=3, stop_token_ids=(EOS,))
BAD_WORDS = ((9,), (2, 3), (7, 3), (1, 2, 4), (*PROMPT[1:], 6), (*PROMPT, 8), PROMPT * 2, (EOS,))
PARAMS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(presence_penalty=0.7, frequency_penalty=0.4, penalize_prompt=True, logprobs=0),
    SamplingParams(
        repetition_penalty=0.7, presence_penalty=-0.3, frequency_penalty=1.7, penalize_prompt=False,
        temperature=0.9, top_p=0.8, seed=1,
    ),
    SamplingParams(no_repeat_ngram_size=1),
    SamplingParams(no_repeat_ngram_size=3, logprobs=5),
    SamplingParams(logit_bias=BIASES, repetition_penalty=1.5, temperature=1.5, typical_p=0.7, seed=2),
    SamplingParams(bad_word_ids=BAD_WORDS),
    SamplingParams(allowed_token_ids=(1, 31, 32, 63, 299), logit_bias=((63, 2.5), (7, 9.0)), logprobs=20),
    SamplingParams(beam=BEAM, logit_bias=((11, 4.0),), repetition_penalty=1.2, no_repeat_ngram_size=2),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, typical_p=0.3, seed=3),
    SamplingParams(temperature=1.0, top_p=0.9, top_p_decay=0.5, top_p_min=0.3, top_p_reset_id=3, seed=4),
    SamplingParams(min_new_tokens=2, stop_token_ids=(5, 3), frequency_penalty=0.1, logprobs=3),
    SamplingParams(
        logit_bias=((3, 5.0),), repetition_penalty=1.1, presence_penalty=0.1, no_repeat_ngram_size=2,
        bad_word_ids=((4,), (3, 1)), min_new_tokens=2, allowed_token_ids=tuple(range(200)), temperature=2.0,
        top_k=100, top_p=0.95, min_p=0.001, typical_p=0.9, seed=5, logprobs=20,
    ),
]  # fmt: skip


def likely_logits(
    num_rows: int, scale: float, dtype: torch.dtype, seed: int, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Tokens of the prompt are among the most likely ones."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator, device=DEVICE) * scale
    logits[:, :10] += 2 * scale
    return logits.to(dtype)


def assert_same(step: FullStep, params: Sequence[SamplingParams]) -> None:
    assert torch.equal(step.actual, step.expected)
    assert_same_reports(step.actual_reports, step.expected_reports)
    # A log-softmax comes first in rows of a beam search.
    is_beam = torch.tensor([each.beam is not None for each in params], device=DEVICE)
    assert torch.equal(step.actual_processed[~is_beam], step.expected_processed[~is_beam])
    torch.testing.assert_close(
        step.actual_processed[is_beam], step.expected_processed[is_beam], rtol=1e-5, atol=1e-5
    )


@st.composite
def any_params(draw: st.DrawFn) -> SamplingParams:
    """Of everything some, so that each combination can come."""
    token = st.integers(0, 12)
    temperature = draw(st.sampled_from([0.0, 0.8, 1.5]))
    is_hot = temperature > 0
    return SamplingParams(
        temperature=temperature,
        top_k=draw(st.sampled_from([0, 3, 50])) if is_hot else 0,
        top_p=draw(st.sampled_from([1.0, 0.9])) if is_hot else 1.0,
        top_p_decay=draw(st.sampled_from([1.0, 0.6])) if is_hot else 1.0,
        top_p_min=0.1,
        top_p_reset_id=draw(st.none() | token),
        min_p=draw(st.sampled_from([0.0, 0.05])) if is_hot else 0.0,
        typical_p=draw(st.sampled_from([1.0, 0.5])) if is_hot else 1.0,
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.1, -0.4])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.3])),
        penalize_prompt=draw(st.none() | st.booleans()),
        no_repeat_ngram_size=draw(st.sampled_from([0, 0, 1, 2, 3, 64])),
        logit_bias=tuple(draw(st.dictionaries(token, st.floats(-5, 5), max_size=3)).items()),
        bad_word_ids=tuple(draw(st.lists(st.lists(token, min_size=1, max_size=4).map(tuple), max_size=3))),
        allowed_token_ids=draw(st.sampled_from([(), tuple(range(0, VOCAB_SIZE, 2)), (*range(9), 299)])),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([None, None, 0, 4])),
        min_new_tokens=draw(st.integers(0, 2)),
        stop_token_ids=tuple(draw(st.lists(token, max_size=2))),
    )


class RaisesSeven:
    """A custom processor of all rows that change their logits: one more for that of token 7."""

    def __init__(self) -> None:
        self._rows: set[int] = set()

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        for row in new_rows:
            assert isinstance(row.sampling, SamplingParams)
            if row.sampling.changes_logits:
                self._rows.add(row.row)

    def process(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> Mapping[int, str]:
        logits[[place for place, row in enumerate(host_rows) if row in self._rows], 7] += 1.0
        return {}

    def check(
        self, token_ids: Tensor, finishes: Tensor, rows: Tensor, host_rows: Sequence[int]
    ) -> Mapping[int, str]:
        return {}

    @staticmethod
    def on_device(processed: Tensor, rows: Tensor) -> None:
        """The same, for a graph: of rows without processed logits nothing is read."""
        processed[:, 7] += 1.0
