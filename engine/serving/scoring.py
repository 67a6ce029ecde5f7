"""Log-probabilities as they came from the device, with the tokens that they are of."""

from collections.abc import Sequence

from engine.serving.types import TokenLogprob
from engine.text.tokenizer import Tokenizer
from scheduler.step import TokenLogprobs


class TokenScorer:
    """with_text: whether tokens get their text."""

    def __init__(self, tokenizer: Tokenizer, with_text: bool) -> None:
        self._tokenizer = tokenizer
        self._with_text = with_text

    def score(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> tuple[TokenLogprob, ...]:
        """The first tokens, as far as there are log-probabilities."""
        return tuple(map(self._scored, token_ids, logprobs))

    def _scored(self, token_id: int, scored: TokenLogprobs) -> TokenLogprob:
        top = tuple(map(self._token, scored.token_ids, scored.logprobs))
        return TokenLogprob(token_id, scored.logprob, self._text(token_id), top)

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, logprob, self._text(token_id))

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._with_text else ""
