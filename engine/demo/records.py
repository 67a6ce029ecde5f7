"""JSON records: a sentence about a person is put into JSON, or a record into words."""

import json
import re
from collections.abc import Iterator
from random import Random

from engine.demo.task import END, PromptError
from engine.demo.words import CITIES, DRINKS, NAMES

_FIELDS = ("name", "age", "city", "likes")
_TEMPLATES = (
    "{name} is {age} years old, lives in {city} and likes {likes}.",
    "{name} from {city} is {age} and likes {likes}.",
    "{name} likes {likes}, lives in {city} and is {age} years old.",
)
_SENTENCES = tuple(
    re.compile(re.escape(template).replace(r"\{", "(?P<").replace(r"\}", r">\w+)")) for template in _TEMPLATES
)
_TO_JSON, _TO_WORDS = "\nJSON:", "\nIn words:"


def _parse(prompt: str) -> tuple[dict[str, str | int], bool]:
    """The record that a prompt tells, and whether JSON is asked for."""
    if prompt.endswith(_TO_WORDS):
        return json.loads(prompt.removesuffix(_TO_WORDS)), False
    sentence = prompt.removesuffix(_TO_JSON)
    for form in _SENTENCES:
        if sentence != prompt and (told := form.fullmatch(sentence)):
            return {field: int(told[field]) if field == "age" else told[field] for field in _FIELDS}, True
    raise PromptError(f"no record in {prompt!r}")


def solve(prompt: str) -> Iterator[str]:
    record, to_json = _parse(prompt)
    yield " " + (json.dumps(record) if to_json else _TEMPLATES[0].format(**record))
    yield END


def key(prompt: str) -> str:
    """The record, whichever way it is told."""
    return json.dumps(_parse(prompt)[0])


def sample(rng: Random) -> str:
    values = (rng.choice(NAMES), rng.randint(1, 99), rng.choice(CITIES), rng.choice(DRINKS))
    record = dict(zip(_FIELDS, values, strict=True))
    if rng.random() < 0.3:
        return json.dumps(record) + _TO_WORDS
    return rng.choice(_TEMPLATES).format(**record) + _TO_JSON
