"""Who does what to whom: facts in a small grammar, then a question or a passive sentence that they answer.

"The red fox sees the blue bird. The blue bird is seen by" is followed by " the red fox."
"""

import re
from collections.abc import Iterator
from random import Random

from engine.demo.task import END, PromptError
from engine.demo.words import ADJECTIVES, ANIMALS, VERBS

_FACT = re.compile(r"The (\w+ \w+) (\w+) the (\w+ \w+)\. ")
_PASSIVE = re.compile(r"The (?P<object>\w+ \w+) is (?P<verb>\w+) by")
_WHO = re.compile(r"Who (?P<verb>\w+) the (?P<object>\w+ \w+)\?")
_WHAT = re.compile(r"What does the (?P<subject>\w+ \w+) (?P<verb>\w+)\?")
_THIRD_PERSON = {form: forms[0] for forms in VERBS for form in forms}


def solve(prompt: str) -> Iterator[str]:
    facts = [(subject, verb, object_) for subject, verb, object_ in _FACT.findall(prompt)]
    asked = _FACT.sub("", prompt)
    question = _PASSIVE.fullmatch(asked) or _WHO.fullmatch(asked) or _WHAT.fullmatch(asked)
    if question is None:
        raise PromptError(f"neither a question nor a passive sentence: {asked!r}")
    yield _answer(facts, question)
    yield END


def _answer(facts: list[tuple[str, str, str]], question: re.Match[str]) -> str:
    asked = question.groupdict()
    for subject, verb, object_ in facts:
        if verb != _THIRD_PERSON.get(asked["verb"]):
            continue
        if asked.get("object") == object_:
            return f" the {subject}." if question.re is _PASSIVE else f" The {subject}."
        if asked.get("subject") == subject:
            return f" The {object_}."
    raise PromptError(f"no fact answers {question[0]!r}")


def sample(rng: Random) -> str:
    """One or two facts about different animals, one of them asked for."""
    num_facts = rng.choice((1, 2, 2, 2))
    pairs = zip(rng.sample(ADJECTIVES, 2 * num_facts), rng.sample(ANIMALS, 2 * num_facts), strict=True)
    animals = iter([f"{adjective} {animal}" for adjective, animal in pairs])
    facts = [(next(animals), verb, next(animals)) for verb in rng.sample(VERBS, num_facts)]
    told = "".join(f"The {subject} {verb[0]} the {object_}. " for subject, verb, object_ in facts)
    subject, (does, do, done), object_ = rng.choice(facts)
    passive, who = f"The {object_} is {done} by", f"Who {does} the {object_}?"
    return told + rng.choice((passive, who, f"What does the {subject} {do}?"))
