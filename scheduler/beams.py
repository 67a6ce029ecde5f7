"""Beam search over one request: which candidates go on, which are finished, when it ends. Pure arithmetic."""

from dataclasses import dataclass
from typing import Literal

EarlyStopping = Literal["true", "false", "never"]


@dataclass(frozen=True, slots=True)
class BeamParams:
    """What a request asks of beam search. The engine has checked the values.

    width: hypotheses that are searched at once, at least 1. length_penalty: a hypothesis's score is the sum of
    its tokens' log-probabilities over (number of generated tokens) ** length_penalty, so above 0 favours long
    ones. early_stopping: transformers' True ("true": as soon as `width` are finished), False ("false": as soon
    as the best running one, at its present length, scores no better than the worst finished one) and "never"
    (the same, but with a length_penalty above 0 at the longest length).
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
        """Candidates a step that each beam has to offer: `width` of them go on even if all of them came from
        one beam, and every stop id may rank before those."""
        return self.width + len(self.stop_token_ids)
