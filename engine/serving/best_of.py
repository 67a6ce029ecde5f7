"""The best of several outputs, which are told when all have ended."""

from dataclasses import replace

from engine.serving.merging import MergedDelta
from engine.serving.types import OutputDelta


class BestOf:
    """Holds back the outputs of one request. num_returned: how many of them are told."""

    def __init__(self, num_returned: int) -> None:
        self._num_returned = num_returned
        self._outputs: dict[int, MergedDelta] = {}

    def hold(self, delta: OutputDelta) -> OutputDelta | None:
        """What may be told at once: log-probabilities of the prompt."""
        merged = self._outputs.setdefault(delta.output_index, MergedDelta(delta.output_index))
        merged.merge(replace(delta, prompt_logprobs=()))
        if not delta.prompt_logprobs:
            return None
        return OutputDelta(delta.output_index, prompt_logprobs=delta.prompt_logprobs)

    def best(self) -> list[OutputDelta]:
        """All having ended: those of the highest cumulative log-probability, best first, with new numbers.

        The last one has the usage and timings of the request.
        """
        outputs = [merged.to_delta() for merged in self._outputs.values()]
        (whole,) = (delta for delta in outputs if delta.usage is not None)
        ranked = sorted(outputs, key=_score, reverse=True)[: self._num_returned]
        best = [
            replace(delta, output_index=index, usage=None, timings=None) for index, delta in enumerate(ranked)
        ]
        best[-1] = replace(best[-1], usage=whole.usage, timings=whole.timings)
        return best


def _score(delta: OutputDelta) -> float:
    assert delta.finish is not None, "an output that has not ended"
    assert delta.finish.cumulative_logprob is not None, "no log-probabilities"
    return delta.finish.cumulative_logprob
