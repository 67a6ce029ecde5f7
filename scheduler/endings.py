"""How the outputs of a beam search end."""

from typing import NamedTuple

from scheduler.beams import BeamSearch, Hypothesis
from scheduler.request import FinishReason, LastToken

_CUT_OFF = {None: FinishReason.LENGTH, FinishReason.TIME: FinishReason.TIME}


class Ending(NamedTuple):
    reason: FinishReason
    last: LastToken
    error: str | None


def search_endings(search: BeamSearch, reason: FinishReason | None, error: str | None) -> list[Ending]:
    """One for each of `width` outputs, best first.

    reason: None if the search is over. TIME ends it with what it has found until now. Any other reason leaves
    its outputs without a token.
    """
    if reason is FinishReason.TIME:
        search.close()
    found = search.hypotheses if reason in _CUT_OFF else []
    endings = [_ending(hypothesis, reason) for hypothesis in found]
    if reason is None:
        reason, error = FinishReason.ERROR, f"the beam search found no more than {len(found)} hypotheses"
    num_missing = search.params.width - len(found)
    return endings + [Ending(reason, LastToken(), error)] * num_missing


def _ending(hypothesis: Hypothesis, reason: FinishReason | None) -> Ending:
    why = FinishReason.STOP if hypothesis.is_stopped else _CUT_OFF[reason]
    return Ending(why, LastToken(hypothesis.token_ids, score=hypothesis.score), None)
