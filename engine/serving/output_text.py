"""The text of one output: detokenized, and cut at the first stop string or match of an expression."""

from collections.abc import Sequence

from engine.sampling.params import SamplingParams
from engine.text.detokenizer import Detokenizer
from engine.text.stop_regex import StopRegexes, StopRegexMatcher
from engine.text.stop_strings import StopAutomaton, StopStringMatcher
from engine.text.tokenizer import Tokenizer

Stops = StopAutomaton | StopRegexes


def compile_stops(params: SamplingParams) -> Stops | None:
    """What the texts of all outputs of a request are searched for; None if that is nothing.

    Raises InvalidArgumentError, field `stop_regex`.
    """
    if params.stop_regex:
        return StopRegexes(params.stop_regex, params.stop_strings)
    return StopAutomaton(params.stop_strings) if params.stop_strings else None


class OutputText:
    """stop: the stop string or expression that was found. What comes after it is dropped."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        stops: Stops | None,
    ) -> None:
        """stops: compile_stops(params)."""
        self.stop: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids=prompt_token_ids)
        self._matcher = None if stops is None else _matcher(stops, params.include_stop)
        self._include_stop = params.include_stop
        self._num_unsearched = params.min_new_tokens

    @property
    def is_regex(self) -> bool:
        """Whether `stop` is an expression."""
        return isinstance(self._matcher, StopRegexMatcher) and self._matcher.is_regex

    def add(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text that is certain now, and how many of token_ids belong to the output."""
        if self._matcher is None:
            return self._detokenizer.add(token_ids), len(token_ids)
        texts = []
        for count, token_id in enumerate(token_ids, 1):  # one by one, to know which completes a stop string
            texts.append(self._add_searched(token_id))
            if self.stop is not None:
                return "".join(texts), count
        return "".join(texts), len(token_ids)

    def end(self, stop_token_id: int | None = None) -> str:
        """The rest of the text, with that of the stop token if the output is to include it."""
        text = ""
        if stop_token_id is not None and self._include_stop:
            text, _ = self.add((stop_token_id,))
        text += self._search(self._detokenizer.flush())
        if self._matcher is not None:
            text += self._matcher.flush()
        if self._include_stop and stop_token_id in self._tokenizer.special_token_ids and not self.stop:
            text += self._tokenizer.decode([stop_token_id], skip_special_tokens=False)
        return text

    def _add_searched(self, token_id: int) -> str:
        text = self._detokenizer.add((token_id,))
        if self._num_unsearched:
            self._num_unsearched -= 1
            if isinstance(self._matcher, StopRegexMatcher):
                self._matcher.skip(text)
            return text
        return self._search(text)

    def _search(self, text: str) -> str:
        if self._matcher is None:
            return text
        fed = self._matcher.feed(text)
        self.stop = self.stop or fed.matched
        return fed.emit


def _matcher(stops: Stops, include_stop: bool) -> StopStringMatcher | StopRegexMatcher:
    if isinstance(stops, StopRegexes):
        return StopRegexMatcher(stops, include_stop)
    return StopStringMatcher(stops, include_stop)
