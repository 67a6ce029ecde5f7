"""What is asked for: lengths, shared prefixes, conversations, sampling, and how clients behave."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.loadtest.dataset import DatasetRow
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.lengths import Lengths

SAMPLING_OPTIONS = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), float),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("top_k", "seed"), int),
}
SamplingOptions = tuple[tuple[str, float], ...]
BehaviourKind = Literal["", "cancel", "slow", "deadline"]


@dataclass(frozen=True)
class Behaviour:
    """How a client treats its request.

    "": reads to the end. cancel: after so many seconds. slow: waits so many seconds before each message.
    deadline: gives the server so many seconds.
    """

    kind: BehaviourKind = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Workload:
    """prompt: tokens of each turn's new input, behind a family's prefix. output: limit of new tokens.

    num_turns: of a conversation; think_seconds between an answer and the next turn. num_families prefixes of
    family_tokens each. sampling: (weight, options). behaviours: (share of the requests, what these do).
    ignore_eos: outputs go on until their limit. as_text: prompts are words instead of token ids (about one
    token each). dataset: rows replace lengths or prompts as far as they have them, again from the first when
    they are used up. content: another number makes other ids and leaves everything else as it is, so that a
    server cannot answer from its prefix cache what it computed in the run before.
    """

    prompt: Lengths
    output: Lengths
    num_turns: int = 1
    think_seconds: float = 0.0
    num_families: int = 0
    family_tokens: int = 0
    sampling: tuple[tuple[float, SamplingOptions], ...] = ((1.0, ()),)
    behaviours: tuple[tuple[float, Behaviour], ...] = ()
    ignore_eos: bool = False
    as_text: bool = False
    dataset: tuple[DatasetRow, ...] = ()
    content: int = 0

    def __post_init__(self) -> None:
        if self.num_turns < 1:
            raise OptionError("--turns", self.num_turns, "at least 1")
        if not self.think_seconds >= 0:
            raise OptionError("--think", self.think_seconds, "at least 0")
        if self.num_families < 0 or (self.num_families and self.family_tokens < 1):
            raise OptionError("--families", self.num_families, "at least 0, of at least 1 token each")
        if sum(share for share, _ in self.behaviours) > 1:
            raise OptionError("--cancel, --slow, --deadline", self.behaviours, "shares add up to at most 1")

    def describe(self) -> str:
        """In words."""
        parts = [f"{self.prompt} + {self.output} tokens"]
        if self.dataset:
            parts = [f"dataset of {len(self.dataset)} rows, else {parts[0]}"]
        if self.num_families:
            parts.append(f"{self.num_families} families with {self.family_tokens} tokens in common")
        if self.num_turns > 1:
            parts.append(f"{self.num_turns} turns, {self.think_seconds:g} s to think")
        parts += [
            f"{share:.0%} {behaviour.kind} {behaviour.seconds:g} s" for share, behaviour in self.behaviours
        ]
        if any(options for _, options in self.sampling):
            parts.append("sampling " + " | ".join(_show(*weighted) for weighted in self.sampling))
        if self.ignore_eos:
            parts.append("ignore_eos")
        return ", ".join(parts)


def _show(weight: float, options: SamplingOptions) -> str:
    return f"{weight:g}:" + ",".join(f"{name}={value:g}" for name, value in options)


def parse_sampling(text: str) -> tuple[float, SamplingOptions]:
    """[WEIGHT:]NAME=VALUE,… Raises OptionError. "0.5:" alone is greedy, at half the weight of "1:"."""
    weight, _, rest = text.rpartition(":")
    pairs = [pair.split("=") for pair in rest.split(",") if pair]
    try:
        options = tuple((name, SAMPLING_OPTIONS[name](value)) for name, value in pairs)
        number = float(weight or 1)
    except (ValueError, KeyError) as error:
        expected = f"expected [WEIGHT:]NAME=VALUE,… with {', '.join(SAMPLING_OPTIONS)}"
        raise OptionError("--sampling", text, expected) from error
    if not number > 0:
        raise OptionError("--sampling", text, "weights are above 0")
    return number, options


def parse_behaviour(kind: BehaviourKind, text: str) -> tuple[float, Behaviour]:
    """SHARE:SECONDS. Raises OptionError."""
    share, _, seconds = text.partition(":")
    try:
        parsed = float(share), Behaviour(kind, float(seconds))
    except ValueError as error:
        raise OptionError(f"--{kind}", text, "expected SHARE:SECONDS") from error
    if not (0 <= parsed[0] <= 1 and parsed[1].seconds > 0):
        raise OptionError(f"--{kind}", text, "SHARE is in [0, 1], SECONDS above 0")
    return parsed


def pick_behaviour(behaviours: Sequence[tuple[float, Behaviour]], rng: random.Random) -> Behaviour:
    point = rng.random()
    for share, behaviour in behaviours:
        if point < share:
            return behaviour
        point -= share
    return Behaviour()
