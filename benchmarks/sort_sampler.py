"""Sampling as it is usually written in torch: dense penalties, one sort of the vocabulary, exponential noise.

Only what benchmarks/sampling.py measures against: n-gram bans and bad words, which need loops over rows, are
left out, so that its time is a lower bound.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.sampling.params import SamplingParams
from scheduler.step import NewRow


class SortSampler:
    """For rows that all do what any of them asks for, with neutral values where they do not."""

    def __init__(self, params: Sequence[SamplingParams], rows: Sequence[NewRow]) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([float(getattr(each, name)) for each in params], device="cuda").unsqueeze(1)

        self._greedy = column("temperature").squeeze(1) == 0
        self._temperature = column("temperature").masked_fill_(self._greedy.unsqueeze(1), 1.0)
        self._top_p, self._min_p, self._typical_p = column("top_p"), column("min_p"), column("typical_p")
        self._top_k = column("top_k").long()
        self._repetition = column("repetition_penalty")
        self._presence, self._frequency = column("presence_penalty"), column("frequency_penalty")
        self._penalizes = any(each.penalizes for each in params)
        self._truncates = any(each.top_k or each.top_p < 1 or each.min_p for each in params)
        self._typical = any(each.typical_p < 1 for each in params)
        self._num_logprobs = max((each.logprobs or 0) for each in params)
        self._tokens = torch.tensor([row.token_ids for row in rows], device="cuda")
        self._num_prompt = rows[0].num_prompt_tokens

    def sample(self, logits: Tensor) -> Tensor:
        values = logits.float()
        if self._num_logprobs:
            torch.log_softmax(values, -1).topk(self._num_logprobs)
        if self._penalizes:
            values = self._penalize(values)
        greedy = values.argmax(-1)
        if bool(self._truncates or self._typical):
            values = self._truncate(values / self._temperature)
        probabilities = values.softmax(-1)
        noise = torch.empty_like(probabilities).exponential_()
        return torch.where(self._greedy, greedy, (probabilities / noise).argmax(-1))

    def _penalize(self, values: Tensor) -> Tensor:
        counts = torch.zeros_like(values)
        generated = self._tokens[:, self._num_prompt :]
        counts.scatter_add_(1, generated, torch.ones_like(generated, dtype=values.dtype))
        seen = torch.zeros_like(values, dtype=torch.bool).scatter_(1, self._tokens, True)
        factor = torch.where(values > 0, 1 / self._repetition, self._repetition)
        values = torch.where(seen, values * factor, values)
        return values - self._presence * (counts > 0) - self._frequency * counts

    def _truncate(self, values: Tensor) -> Tensor:
        ordered, index = values.sort(-1)
        last_k = ordered.shape[1] - self._top_k.clamp(1, ordered.shape[1])
        limited = self._top_k > 0
        ordered = ordered.masked_fill(limited & (ordered < ordered.gather(1, last_k)), -torch.inf)
        probabilities = ordered.softmax(-1)
        keeps = probabilities.cumsum(-1) > 1 - self._top_p
        keeps &= probabilities >= self._min_p * probabilities[:, -1:]
        keeps[:, -1] = True
        if self._typical:
            keeps &= self._typical_set(probabilities)
        ordered = ordered.masked_fill(~keeps, -torch.inf)
        return torch.empty_like(values).scatter_(1, index, ordered)

    def _typical_set(self, probabilities: Tensor) -> Tensor:
        surprise = -probabilities.clamp(min=1e-30).log()
        shifted = (surprise - (probabilities * surprise).sum(-1, keepdim=True)).abs()
        order = shifted.argsort(-1)
        mass = probabilities.gather(1, order).cumsum(-1)
        within = mass - probabilities.gather(1, order) < self._typical_p
        return torch.empty_like(within).scatter_(1, order, within)
