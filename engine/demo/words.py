"""The words that the demo model's texts are made of."""


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


DAYS = _list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _list("January February March April May June July August September October November December")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

NAMES = _list("Ada Alan Anna Ben Clara David Emma Eric Grace Hugo Ida Jack Julia Leo Lily Max Mia Nora")
CITIES = _list("Athens Berlin Boston Cairo Delhi Dublin Lima London Madrid Oslo Paris Rome Tokyo Vienna")
DRINKS = _list("beer cider cocoa coffee juice milk rum soda tea water wine")

ADJECTIVES = _list("big black blue brave brown gray green happy old quick quiet red small tall white young")
ANIMALS = _list("bear bird cat cow dog duck fish fox frog goat hen horse lion mouse owl pig rabbit wolf")
VERBS = (
    ("calls", "call", "called"),
    ("feeds", "feed", "fed"),
    ("finds", "find", "found"),
    ("follows", "follow", "followed"),
    ("hears", "hear", "heard"),
    ("helps", "help", "helped"),
    ("knows", "know", "known"),
    ("likes", "like", "liked"),
    ("sees", "see", "seen"),
    ("wakes", "wake", "woken"),
)
"""Each as in "the fox sees", "does the fox see?", "is seen by the fox"."""

GOODS = _list(
    "apple bean beet bread butter cake carrot cheese egg fig grape honey jam leek lemon lime melon nut olive "
    "onion peach pear pepper plum rice salt"
)
