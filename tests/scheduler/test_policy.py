"""Ranks, and lists kept in their order."""

import pytest

from scheduler import Request, RequestTimes
from scheduler.policy import RankedList, make_rank
from scheduler.request import Sequence


def new_sequence(*rank: int) -> Sequence:
    first, second, third = rank
    return Sequence(0, Request("a", [1], 1), 0, (first, second, third), RequestTimes(0.0))


def test_fcfs_ranks_by_arrival_then_output() -> None:
    ranks = [
        make_rank("fcfs", Request("a", [1], 1, priority=priority), arrival, output_index)
        for arrival, priority in enumerate((0, 9, 5))
        for output_index in range(2)
    ]
    assert ranks == sorted(set(ranks))


def test_priority_ranks_higher_numbers_first() -> None:
    low, high, same = (
        make_rank("priority", Request("a", [1], 1, priority=priority), arrival, 0)
        for arrival, priority in enumerate((-1, 3, 3))
    )
    assert sorted([low, high, same]) == [high, same, low]


def test_a_ranked_list_stays_in_order() -> None:
    sequences = [new_sequence(0, arrival, 0) for arrival in (3, 1, 2, 0)]
    ranked = RankedList()
    for sequence in sequences:
        ranked.add(sequence)
    assert [sequence.rank[1] for sequence in ranked] == [0, 1, 2, 3]
    assert (ranked.best, ranked.worst) == (sequences[3], sequences[0])
    assert ranked.num_better((0, 2, 0)) == 2
    ranked.remove(sequences[2])
    assert [sequence.rank[1] for sequence in ranked] == [0, 1, 3]
    assert sequences[2] not in ranked
    assert sequences[1] in ranked
    ranked.clear()
    assert len(ranked) == 0
    assert sequences[1] not in ranked


def test_a_sequence_is_listed_once() -> None:
    ranked, sequence = RankedList(), new_sequence(0, 0, 0)
    ranked.add(sequence)
    with pytest.raises(AssertionError):
        ranked.add(sequence)
    with pytest.raises(AssertionError):
        ranked.remove(new_sequence(0, 0, 0))
