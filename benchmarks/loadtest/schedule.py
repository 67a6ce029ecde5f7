"""The plan of a run, frozen before it begins: every request with its time, prompt, length and behaviour.

Each aspect is drawn from a random stream of its own, in the order of the requests: a plan depends on nothing
but its arguments, and a longer one begins with the shorter one's prompts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from benchmarks.loadtest.arrivals import Arrivals, due_times
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.lengths import Lengths
from benchmarks.loadtest.workload import Behaviour, SamplingOptions, Workload, pick_behaviour

Prompt = str | tuple[int, ...]
FIRST_ID = 3  # ids below it are special in most vocabularies
WORDS = (
    *("the", "a", "one", "some", "each", "river", "mountain", "city", "garden", "house", "story", "song"),
    *("letter", "question", "number", "day", "night", "water", "light", "stone", "small", "large", "old"),
    *("new", "green", "quiet", "quick", "early", "walks", "finds", "makes", "keeps", "tells", "reads"),
    *("and", "or", "but", "then", "because", "while", "over", "under", "near", "between", "with", "without"),
)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """prompt: what this turn adds to the conversation. sampling: as the client's options name it."""

    index: int
    turn: int
    prompt: Prompt
    num_output_tokens: int
    sampling: SamplingOptions
    ignore_eos: bool
    family: str
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class Conversation:
    """due: of the first turn, seconds from the start; None as soon as a place is free. A turn is sent
    think_seconds after its predecessor's answer has ended."""

    due: float | None
    think_seconds: float
    turns: tuple[PlannedRequest, ...]


@dataclass(frozen=True)
class Plan:
    """num_requests: turns of all conversations. longest: tokens of the longest one, answers included, if
    prompts are ids."""

    conversations: tuple[Conversation, ...]
    num_requests: int
    longest: int

    def check_fits(self, max_model_len: int) -> None:
        """Raises OptionError, before anything is sent."""
        if max_model_len and self.longest > max_model_len:
            raise OptionError(
                "--prompt-tokens, --output-tokens", self.longest, f"the server takes {max_model_len} tokens"
            )


def make_plan(
    workload: Workload, arrivals: Arrivals, num_requests: int, *, vocab_size: int, seed: int
) -> Plan:
    """vocab_size: ids are below it; of no importance to text. Raises OptionError."""
    if num_requests < 1:
        raise OptionError("--requests", num_requests, "at least 1")
    drawn = list(_requests(workload, num_requests, vocab_size, seed))
    if any(isinstance(request.prompt, str) != workload.as_text for request in drawn):
        other = "ids" if workload.as_text else "text"
        raise OptionError(
            "--prompt-format", "text" if workload.as_text else "ids", f"the dataset has {other}"
        )
    groups = [drawn[at : at + workload.num_turns] for at in range(0, num_requests, workload.num_turns)]
    times = due_times(arrivals, len(groups), seed)
    conversations = tuple(
        Conversation(due, workload.think_seconds, tuple(group))
        for due, group in zip(times, groups, strict=True)
    )
    return Plan(conversations, num_requests, max(map(_num_tokens, conversations)))


def joined(parts: Sequence[Prompt]) -> Prompt:
    """One after the other: all text, or all ids."""
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return tuple(chain.from_iterable(part for part in parts if not isinstance(part, str)))


def _num_tokens(conversation: Conversation) -> int:
    return sum(
        len(turn.prompt) + turn.num_output_tokens
        for turn in conversation.turns
        if not isinstance(turn.prompt, str)
    )


def _requests(workload: Workload, count: int, vocab_size: int, seed: int) -> Iterator[PlannedRequest]:
    prompt_lengths, output_lengths, mix, behaviours, families = (
        random.Random(f"{aspect} {seed}")
        for aspect in ("prompt lengths", "output lengths", "sampling", "behaviours", "families")
    )
    content = random.Random(f"content {seed} {workload.content}")
    maker = _PromptMaker(workload, vocab_size, seed)
    weights, options = [weight for weight, _ in workload.sampling], [each for _, each in workload.sampling]
    family = ""
    for index in range(count):
        turn = index % workload.num_turns
        if turn == 0:
            family = str(families.randrange(workload.num_families)) if workload.num_families else ""
        row = workload.dataset[index % len(workload.dataset)] if workload.dataset else None
        num_prompt = _drawn(row.num_prompt_tokens if row else None, workload.prompt, prompt_lengths)
        given = row.prompt if row else None
        prompt = maker.draw(content, num_prompt) if given is None else given
        yield PlannedRequest(
            index=index,
            turn=turn,
            prompt=maker.with_prefix(family, prompt) if turn == 0 and family else prompt,
            num_output_tokens=_drawn(row.num_output_tokens if row else None, workload.output, output_lengths),
            sampling=mix.choices(options, weights)[0],
            ignore_eos=workload.ignore_eos,
            family=family,
            behaviour=pick_behaviour(workload.behaviours, behaviours),
        )


def _drawn(given: int | None, lengths: Lengths, rng: random.Random) -> int:
    drawn = lengths.draw(rng)  # in any case: what others get does not depend on what is given
    return drawn if given is None else given


class _PromptMaker:
    """Random ids, or random words; a family's prefix is drawn once."""

    def __init__(self, workload: Workload, vocab_size: int, seed: int) -> None:
        self._as_text = workload.as_text
        self._ids = range(FIRST_ID, vocab_size)
        if not self._as_text and not self._ids:
            raise OptionError("--vocab-size", vocab_size, f"above {FIRST_ID}")
        self._prefixes = {
            str(family): self.draw(
                random.Random(f"family {family} {seed} {workload.content}"), workload.family_tokens
            )
            for family in range(workload.num_families)
        }

    def draw(self, rng: random.Random, num_tokens: int) -> Prompt:
        if self._as_text:
            return "".join(f" {word}" for word in rng.choices(WORDS, k=num_tokens))
        return tuple(rng.choices(self._ids, k=num_tokens))

    def with_prefix(self, family: str, prompt: Prompt) -> Prompt:
        return joined((self._prefixes[family], prompt))
