"""Who runs first.

A rank is a strict total order over sequences, fixed when they are added: smaller runs sooner.
"fcfs": in the order in which requests were added, then by output index. "priority": the higher priority
first, then as before.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from scheduler.request import Rank, Request, Sequence

POLICIES = ("fcfs", "priority")

_by_rank = attrgetter("rank")


def make_rank(policy: str, request: Request, arrival: int, output_index: int) -> Rank:
    """arrival: how many requests were added before this one."""
    return (-request.priority if policy == "priority" else 0, arrival, output_index)


class RankedList:
    """Sequences, best-ranked first. Changing it is O(log n) comparisons and one memmove."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, sequence: Sequence) -> bool:
        index = self.num_better(sequence.rank)
        return index < len(self._items) and self._items[index] is sequence

    def add(self, sequence: Sequence) -> None:
        assert sequence not in self, "a sequence is listed once"
        insort(self._items, sequence, key=_by_rank)

    def remove(self, sequence: Sequence) -> None:
        assert sequence in self, "a sequence to remove is listed"
        del self._items[self.num_better(sequence.rank)]

    def clear(self) -> None:
        self._items.clear()

    def num_better(self, rank: Rank) -> int:
        """How many sequences of the list rank better than that."""
        return bisect_left(self._items, rank, key=_by_rank)

    @property
    def best(self) -> Sequence:
        return self._items[0]

    @property
    def worst(self) -> Sequence:
        return self._items[-1]
