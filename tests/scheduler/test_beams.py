"""Beam search by itself: against transformers, on models of random numbers, and where that has nothing."""

from math import inf, isfinite, nan
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings

from scheduler.beams import BeamParams, BeamSearch, Candidate, Child, EarlyStopping

VOCABULARY = 24
LONGEST = 12
hf: Any = transformers  # its generation is typed for models other than the one below
EARLY: dict[EarlyStopping, bool | str] = {"true": True, "false": False, "never": "never"}


class RandomModel(hf.PreTrainedModel, hf.GenerationMixin):  # type: ignore[misc]
    """The next token's distribution depends on the position and the last two tokens, in a random way."""

    config_class = hf.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, seed: int, stop_token_ids: tuple[int, ...], stop_bias: float) -> None:
        super().__init__(hf.PretrainedConfig(is_encoder_decoder=False, vocab_size=VOCABULARY))
        shape = (LONGEST + 1, VOCABULARY, VOCABULARY, VOCABULARY)
        table = np.random.default_rng(seed).normal(size=shape, scale=2)
        table[..., list(stop_token_ids)] += stop_bias
        self.table = torch.nn.Parameter(torch.tensor(table, dtype=torch.float32), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        length = input_ids.shape[1]
        logits = self.table[length - 1, input_ids[:, max(0, length - 2)], input_ids[:, -1]]
        return hf.modeling_outputs.CausalLMOutput(logits=logits[:, None])

    def candidates(self, token_ids: tuple[int, ...], num: int) -> list[Candidate]:
        logits = self.forward(torch.tensor([token_ids])).logits
        best = torch.log_softmax(logits[0, 0], dim=-1).topk(num)
        return list(map(Candidate, best.indices.tolist(), best.values.tolist()))


def searched(model: RandomModel, params: BeamParams, prompt: tuple[int, ...], max_new: int) -> BeamSearch:
    search = BeamSearch(params, max_new)
    while not search.is_over:
        texts = [(*prompt, *beam.token_ids) for beam in search.beams]
        children = search.advance([model.candidates(text, params.num_candidates) for text in texts])
        continued = [(*texts[child.parent], child.token_id) for child in children]
        assert continued == [(*prompt, *beam.token_ids) for beam in search.beams]
    return search


@settings(max_examples=150, deadline=None, derandomize=True)  # a tie in single precision is possible
@given(
    width=st.sampled_from([2, 3, 4, 8]),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    early_stopping=st.sampled_from(list(EARLY)),
    stop_token_ids=st.sampled_from([(), (3,), (3, 5), (3, 5, 7)]),
    stop_bias=st.sampled_from([0.0, 2.0, 4.0]),
    max_new_tokens=st.integers(1, LONGEST - 1),
    seed=st.integers(0, 10),
)
def test_equals_transformers(
    width: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
    stop_token_ids: tuple[int, ...],
    stop_bias: float,
    max_new_tokens: int,
    seed: int,
) -> None:
    model = RandomModel(seed, stop_token_ids, stop_bias)
    config = hf.GenerationConfig(
        num_beams=width,
        num_return_sequences=width,
        length_penalty=length_penalty,
        early_stopping=EARLY[early_stopping],
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=-1,
        max_new_tokens=max_new_tokens,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = model.generate(torch.tensor([[1, 2]]), generation_config=config)
    params = BeamParams(width, length_penalty, early_stopping, stop_token_ids=stop_token_ids)
    found = searched(model, params, (1, 2), max_new_tokens).hypotheses
    texts = [tuple(token for token in text[2:] if token != -1) for text in expected.sequences.tolist()]
    assert [hypothesis.token_ids for hypothesis in found] == texts
    scores = [hypothesis.score for hypothesis in found]
    assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4, abs=1e-4)
    for hypothesis in found:
        assert hypothesis.is_stopped == (hypothesis.token_ids[-1] in stop_token_ids)


def row(*log_probs: float) -> list[Candidate]:
    return [Candidate(token_id, log_prob) for token_id, log_prob in enumerate(log_probs)]


def test_siblings_give_way_to_others_with_diversity() -> None:
    """Sums after two steps: beam 0 has -1.1, -1.2, -1.3; beam 1 has -2.1, -2.2, -2.3."""
    for rate, expected in [(0.0, [(0, 0), (0, 1)]), (0.8, [(0, 0), (0, 1)]), (1.2, [(0, 0), (1, 0)])]:
        search = BeamSearch(BeamParams(2, diversity_rate=rate), max_new_tokens=9)
        first = search.advance([row(-1.0, -1.1)])
        assert first == [Child(0, 0), Child(0, 1)]
        search.beams[1] = search.beams[1]._replace(log_prob=-2.0)
        assert search.advance([row(-0.1, -0.2, -0.3)] * 2) == expected
        assert search.beams[0].log_prob == pytest.approx(-1.1), "sums are not lowered"


def test_diversity_makes_hypotheses_differ() -> None:
    model = RandomModel(3, (), 0.0)
    texts = {
        rate: [
            each.token_ids
            for each in searched(model, BeamParams(6, diversity_rate=rate), (1, 2), 8).hypotheses
        ]
        for rate in (0.0, 4.0)
    }
    first_tokens = {rate: len({text[:2] for text in found}) for rate, found in texts.items()}
    assert first_tokens[4.0] > first_tokens[0.0]


def test_what_is_impossible_is_no_beam() -> None:
    search = BeamSearch(BeamParams(3), max_new_tokens=2)
    assert search.advance([row(-0.5, -inf, nan)]) == [Child(0, 0)]
    assert search.advance([row(-0.5, -0.7, -inf)]) == []
    assert [each.token_ids for each in search.hypotheses] == [(0, 0), (0, 1)]


def test_a_search_without_candidates_is_over() -> None:
    search = BeamSearch(BeamParams(2, stop_token_ids=(0,)), max_new_tokens=9)
    assert search.advance([row(-0.5, -inf)]) == []
    assert search.is_over
    assert [(each.token_ids, each.is_stopped) for each in search.hypotheses] == [((0,), True)]
    search = BeamSearch(BeamParams(2), max_new_tokens=9)
    assert search.advance([[]]) == []
    assert search.hypotheses == []


def test_a_search_that_is_closed_takes_its_beams_as_they_are() -> None:
    search = BeamSearch(BeamParams(3, length_penalty=1.0, stop_token_ids=(0,)), max_new_tokens=9)
    search.advance([row(-1.0, -2.0, -3.0, -4.0)])
    search.advance([row(-9.0, -1.0)] * 3)
    search.close()
    found = [(each.token_ids, each.score, each.is_stopped) for each in search.hypotheses]
    assert found == [((0,), -1.0, True), ((1, 1), -1.5, False), ((2, 1), -2.0, False)]
    assert search.is_over


def test_closed_before_the_first_token_there_is_nothing() -> None:
    search = BeamSearch(BeamParams(3), max_new_tokens=9)
    search.close()
    assert search.is_over
    assert search.hypotheses == []


def test_a_single_beam_is_searched_too() -> None:
    model = RandomModel(0, (), 0.0)
    (hypothesis,) = searched(model, BeamParams(1), (1, 2), 6).hypotheses
    greedy: tuple[int, ...] = ()
    for _ in range(6):
        greedy += (model.candidates((1, 2, *greedy), 1)[0].token_id,)
    assert hypothesis.token_ids == greedy


@pytest.mark.parametrize("length_penalty", [-100.0, 100.0])
@pytest.mark.parametrize("early_stopping", EARLY)
def test_scores_stay_finite(length_penalty: float, early_stopping: EarlyStopping) -> None:
    """4096 ** 100 is no floating-point number, and its inverse is 0."""
    search = BeamSearch(BeamParams(2, length_penalty, early_stopping, 0.0, (0,)), max_new_tokens=4096)
    while not search.is_over:
        search.advance([row(-1.0, -9.0, -11.0)] * len(search.beams))
    assert all(isfinite(each.score) for each in search.hypotheses)
