"""Beam search over one request: which candidates go on, which are finished, when it ends. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, exp, inf, log
from typing import Literal, NamedTuple

EarlyStopping = Literal["true", "false", "never"]
_LARGEST = 600.0  # natural logarithm of a penalty, or of its inverse, that scores can be divided by


@dataclass(frozen=True, slots=True)
class BeamParams:
    """What a request asks of beam search. The engine has checked the values.

    width: hypotheses that are searched at once, at least 1. length_penalty: a hypothesis's score is the sum
    of its tokens' log-probabilities over (number of generated tokens) ** length_penalty, so above 0 favours
    long ones. early_stopping: transformers' True ("true": as soon as `width` are finished), False ("false":
    as soon as the best running one, at its present length, scores no better than the worst finished one) and
    "never" (the same, but with a length_penalty above 0 at the longest length).
    diversity_rate: when beams are selected, a candidate's score is lowered by this times its rank among its
    siblings, 0 for the best (Li, Monroe and Jurafsky 2016, arXiv:1611.08562; TensorRT-LLM's
    beam_search_diversity_rate). 0 is transformers' beam search.
    stop_token_ids: distinct ids that finish a hypothesis, the model's end-of-sequence ids among them unless
    they are to be ignored. Not for users: intake sets them.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = "false"
    diversity_rate: float = 0.0
    stop_token_ids: tuple[int, ...] = ()

    @property
    def num_candidates(self) -> int:
        """Candidates that each beam has to offer in a step (fewer only if it has no more): `width` of them go
        on even if all of them come from one beam, and every stop id may rank before those."""
        return self.width + len(self.stop_token_ids)


class Candidate(NamedTuple):
    """A token that may follow a beam, and its log-probability there."""

    token_id: int
    log_prob: float


class Child(NamedTuple):
    """A beam of the next step: the index of the beam that it continues, and its new token."""

    parent: int
    token_id: int


class Beam(NamedTuple):
    """A hypothesis that still runs: generated tokens, and the sum of their log-probabilities."""

    token_ids: tuple[int, ...]
    log_prob: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished one. is_stopped: its last token is a stop id; else it was cut off."""

    token_ids: tuple[int, ...]
    score: float
    is_stopped: bool


class _Ranked(NamedTuple):
    """A candidate among those of all beams. score: what they are ranked by."""

    score: float
    parent: int
    token_id: int
    log_prob: float


class BeamSearch:
    """One request's search: that of transformers' GenerationMixin._beam_search (5.x) for a decoder, with the
    diversity of Li et al. on top.

    A step keeps the best candidates of all beams. Those among the best `width` that end in a stop id are
    finished; the best `width` others are the next beams. (transformers keeps a fixed number of candidates,
    enough for that.) Sums are in double precision, so candidates that tie in single precision may come in
    another order.

    beams: the running ones, best first; none when the search is over. It starts with a single empty one.
    hypotheses: the best `width` finished ones, best first.
    """

    def __init__(self, params: BeamParams, max_new_tokens: int) -> None:
        self.params = params
        self.beams = [Beam((), 0.0)]
        self.hypotheses: list[Hypothesis] = []
        self._max_new_tokens = max_new_tokens
        self._num_tokens = 0

    @property
    def is_over(self) -> bool:
        return not self.beams

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> list[Child]:
        """One step: of each beam, in the order of `beams`, its BeamParams.num_candidates best continuations,
        best first (all that it has, if these are fewer; impossible ones, of log-probability -inf or NaN, are
        left out). Returns the next beams, in their order; none: the search is over."""
        assert len(candidates) == len(self.beams), "candidates of each beam"
        self._num_tokens += 1
        ranked = self._rank(candidates)
        is_last = self._num_tokens == self._max_new_tokens
        stops = self.params.stop_token_ids
        for each in ranked[: self.params.width]:
            if is_last or each.token_id in stops:
                self._finish(self._extended(each), each.token_id in stops)
        chosen = [] if is_last else [each for each in ranked if each.token_id not in stops]
        del chosen[self.params.width :]
        self.beams = [self._extended(each) for each in chosen]
        if self._cannot_improve():
            self.beams.clear()
        return [Child(each.parent, each.token_id) for each in chosen[: len(self.beams)]]

    def close(self) -> None:
        """End it here: the running beams are finished as they are."""
        beams, self.beams = self.beams, []
        for beam in beams:
            if beam.token_ids:
                self._finish(beam, is_stopped=False)

    def _rank(self, candidates: Sequence[Sequence[Candidate]]) -> list[_Ranked]:
        rate = self.params.diversity_rate
        ranked = [
            _Ranked(
                beam.log_prob + each.log_prob - rate * rank,
                parent,
                each.token_id,
                beam.log_prob + each.log_prob,
            )
            for parent, (beam, siblings) in enumerate(zip(self.beams, candidates, strict=True))
            for rank, each in enumerate(siblings)
            if each.log_prob > -inf
        ]
        return sorted(ranked, key=lambda each: each.score, reverse=True)

    def _extended(self, chosen: _Ranked) -> Beam:
        return Beam((*self.beams[chosen.parent].token_ids, chosen.token_id), chosen.log_prob)

    def _finish(self, beam: Beam, is_stopped: bool) -> None:
        score = beam.log_prob / self._penalty(len(beam.token_ids))
        self.hypotheses.append(Hypothesis(beam.token_ids, score, is_stopped))
        self.hypotheses.sort(key=lambda each: each.score, reverse=True)
        del self.hypotheses[self.params.width :]

    def _cannot_improve(self) -> bool:
        """Whether no running beam is taken to become better than the worst finished hypothesis."""
        if not self.beams or len(self.hypotheses) < self.params.width:
            return False
        if self.params.early_stopping == "true":
            return True
        longest = self.params.early_stopping == "never" and self.params.length_penalty > 0
        num_tokens = self._max_new_tokens if longest else self._num_tokens
        best = max(beam.log_prob for beam in self.beams)
        return best / self._penalty(num_tokens) <= self.hypotheses[-1].score

    def _penalty(self, num_tokens: int) -> float:
        exponent = self.params.length_penalty * log(num_tokens)
        if abs(exponent) > _LARGEST:
            return exp(copysign(_LARGEST, exponent))
        penalty: float = num_tokens**self.params.length_penalty
        return penalty
