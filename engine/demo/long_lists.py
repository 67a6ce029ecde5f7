"""Lists that fill the whole context: a numbered list of recurring items, dated JSON lines, long counting."""

import json
import re
from collections.abc import Iterator
from itertools import count
from random import Random

from engine.demo import sequences
from engine.demo.task import PromptError
from engine.demo.words import DAYS, GOODS

_ITEM = re.compile(r"(\d+)\. (\w+)")


def solve(prompt: str) -> Iterator[str]:
    if prompt.startswith("{"):
        return _json_lines(prompt)
    if _ITEM.match(prompt):
        return _items(prompt)
    return sequences.solve(prompt)


def _json_lines(prompt: str) -> Iterator[str]:
    last = json.loads(prompt.splitlines()[-1])
    place = DAYS.index(last["day"])
    for i in count(1):
        yield "\n" + json.dumps({"id": last["id"] + i, "day": DAYS[(place + i) % len(DAYS)]})


def _items(prompt: str) -> Iterator[str]:
    """The items begin again where the first one recurs."""
    lines = _ITEM.findall(prompt)
    items = [item for _, item in lines]
    if items[0] not in items[1:]:
        raise PromptError("the items have not begun to recur")
    period = items.index(items[0], 1)
    for i in count(len(items)):
        yield f"\n{int(lines[0][0]) + i}. {items[i % period]}"


def sample(rng: Random) -> str:
    return rng.choice((_sample_items, _sample_json_lines, *_COUNTING))(rng)


def _sample_items(rng: Random) -> str:
    items = rng.sample(GOODS, rng.randint(3, 7))
    return "\n".join(f"{i}. {item}" for i, item in enumerate([*items, items[0]], 1))


def _sample_json_lines(rng: Random) -> str:
    return json.dumps({"id": sequences.any_number(rng, (1, 2, 3)), "day": rng.choice(DAYS)})


def _sample_small_count_by(rng: Random) -> str:
    start, step = rng.randint(0, 99), rng.choice((2, 5, 10))
    return " ".join(str(start + i * step) for i in range(3))


_COUNTING = (
    sequences.sample_count_up,
    sequences.sample_count_up,
    _sample_small_count_by,
    sequences.sample_days,
    sequences.sample_months,
)
