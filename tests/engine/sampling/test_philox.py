import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.philox import Philox, uniform

WORD = st.integers(0, 2**32 - 1)

# The known answers for philox4x32-10 that Random123 distributes (counter, key, result).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def reference(counter: list[int], key: list[int]) -> list[int]:
    """The recurrence as the paper states it, in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right % 2**32, (left >> 32) ^ c3 ^ k1, left % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def test_known_answers_in_one_batch() -> None:
    counters, keys, results = (
        torch.tensor([words(text) for text in column]).T for column in zip(*KNOWN_ANSWERS, strict=True)
    )
    assert torch.equal(Philox(torch.device("cpu"))(counters, keys), results)


@given(st.lists(st.tuples(*[WORD] * 6), min_size=1, max_size=5))
def test_equals_the_recurrence(inputs: list[tuple[int, ...]]) -> None:
    columns = torch.tensor(inputs).T
    result = Philox(torch.device("cpu"))(columns[:4], columns[4:])
    assert result.T.tolist() == [reference(list(row[:4]), list(row[4:])) for row in inputs]


def test_uniform_covers_the_half_open_interval() -> None:
    lowest_and_highest = torch.tensor([[0, 0, 0, 0], [2**32 - 1] * 4]).T
    assert uniform(lowest_and_highest).tolist() == [0.0, 1 - 2**-53]


def test_consecutive_counters_give_independent_uniforms() -> None:
    count = 40_000
    zeros = torch.zeros(count, dtype=torch.int64)
    counter = torch.stack((torch.arange(count), zeros, zeros, zeros))
    numbers = uniform(Philox(torch.device("cpu"))(counter, torch.stack((zeros + 7, zeros))))
    cells = (numbers * 10).long()
    pairs = torch.bincount(cells[:-1] * 10 + cells[1:], minlength=100).double()
    expected = (count - 1) / 100
    # Chi-square with 99 degrees of freedom exceeds 170 with a probability of about 1e-5.
    assert ((pairs - expected) ** 2 / expected).sum() < 170
