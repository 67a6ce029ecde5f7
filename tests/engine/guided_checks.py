"""Grammars of token ids, so that what guides do to a batch can be checked without a library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from engine.sampling.guides import Masks
from engine.sampling.params import SamplingParams
from tests.engine.conftest import Server

_STEPS = (3, 5, 11)
NUM_NEW_TOKENS = 8


@dataclass
class _Walk:
    """After token t only (t + 3), (t + 5) and (t + 11) mod 100 may follow; first 7 or 8."""

    breaks_after: int | None
    token_ids: list[int] = field(default_factory=list)

    def advance(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            assert token_id in self.next
            self.token_ids.append(token_id)

    @property
    def next(self) -> list[int]:
        if self.breaks_after is not None and len(self.token_ids) >= self.breaks_after:
            raise ValueError("out of fuel")
        return [(self.token_ids[-1] + step) % 100 for step in _STEPS] if self.token_ids else [7, 8]


class _Walkers:
    """engine.sampling.guides.Executor, one by one."""

    def advance(self, tokens: Sequence[tuple[_Walk, int]]) -> dict[int, Exception]:
        for walk, token_id in tokens:
            walk.advance([token_id])
        return {}

    def fill(self, guides: Mapping[int, _Walk], masks: Masks) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        for row, walk in guides.items():
            try:
                for token_id in walk.next:
                    masks.view("uint32")[row, token_id // 32] |= 1 << token_id % 32
            except ValueError as error:
                errors[row] = error
        return errors


@dataclass(frozen=True)
class Walks:
    """breaks_after: tokens after which the grammar fails."""

    breaks_after: int | None = None

    def start(self, token_ids: Sequence[int]) -> _Walk:
        walk = _Walk(self.breaks_after)
        walk.advance(token_ids)
        return walk

    def make_executor(self, num_threads: int) -> _Walkers:
        return _Walkers()


def is_walk(token_ids: Sequence[int]) -> bool:
    pairs = pairwise(token_ids)
    return token_ids[0] in (7, 8) and all((b - a) % 100 in _STEPS for a, b in pairs)


def check_guided_rows(server: Server, prompts: Sequence[list[int]], *, steps_in_flight: int) -> None:
    """Rows with a grammar keep to it, one that breaks fails alone, and the others are as without any."""
    plain = SamplingParams(ignore_eos=True)
    alone = server.serve(prompts, plain, num_new_tokens=NUM_NEW_TOKENS, steps_in_flight=steps_in_flight)
    guided = SamplingParams(grammar=Walks(), ignore_eos=True, temperature=1.0, seed=3)
    restricted = SamplingParams(
        grammar=Walks(), ignore_eos=True, allowed_token_ids=tuple(id_ for id_ in range(100) if id_ % 2)
    )
    broken = SamplingParams(grammar=Walks(breaks_after=4), ignore_eos=True)
    served = server.serve_each(
        [
            (prompts[0], plain),
            (prompts[1], guided),
            (prompts[2], broken),
            (prompts[3], plain),
            (prompts[0], restricted),
            (prompts[1], plain),
        ],
        num_new_tokens=NUM_NEW_TOKENS,
        steps_in_flight=steps_in_flight,
    )
    for index, prompt in ((0, 0), (3, 3), (5, 1)):
        assert served.token_ids[str(index), 0] == alone.token_ids[str(prompt), 0]
    assert is_walk(served.token_ids["1", 0])
    assert len(served.token_ids["1", 0]) == NUM_NEW_TOKENS
    assert is_walk(served.token_ids["2", 0])
    assert len(served.token_ids["2", 0]) == 4
    assert served.summaries["2", 0].error == "guided decoding: out of fuel"
    restricted_ids = served.token_ids["4", 0]
    assert restricted_ids[0] == 7
    assert served.summaries["4", 0].error is not None, "after 7 come 10, 12 and 18, which are not allowed"
