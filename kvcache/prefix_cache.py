"""Which blocks hold which text, so that a sequence need not compute again what another has computed.

The cache is a tree. A *prefix* is block_size tokens after those of its parent, back to the empty root, and
knows the block of each layer group that holds the K/V of its own tokens. It is found by a chained hash, of
its parent's hash and its own tokens (the scheme of vLLM's automatic prefix caching). A hash alone proves
nothing: a prefix is accepted only if its tokens are the ones asked for and its parent is the very prefix
found one block before. So, by induction, the whole text is equal: a collision never gives one text the K/V
of another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from kvcache.block_table import NULL_BLOCK, first_visible_block

BlockHash = Callable[[int, tuple[int, ...]], int]


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counters, in tokens since the start: prompts looked up, and the part of them found in the cache."""

    num_queried_tokens: int = 0
    num_hit_tokens: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class Prefix:
    """block_ids: by layer group, the block published for token_ids, or NULL_BLOCK."""

    parent: "Prefix | None"
    token_ids: tuple[int, ...]
    hash: int
    block_ids: list[int]

    def continues(self, parent: "Prefix", token_ids: tuple[int, ...]) -> bool:
        return self.parent is parent and self.token_ids == token_ids

    def ancestor(self, generations: int) -> "Prefix":
        prefix = self
        for _ in range(generations):
            assert prefix.parent is not None
            prefix = prefix.parent
        return prefix


def hash_block(parent_hash: int, token_ids: tuple[int, ...]) -> int:
    """Hashes of integers are the same in every process (only those of strings are randomised)."""
    return hash((parent_hash, token_ids))


class PrefixCache:
    """Prefixes by hash, and the blocks published for them.

    A prefix lives as long as anything refers to it: a published block, a longer prefix, or a sequence that
    goes on from it. So the parent of a known prefix is known too, even when its own blocks are long evicted.
    That is what lets a window's last blocks be found again: exactly, at the price of keeping the whole text.
    """

    def __init__(self, num_groups: int, hash_block: BlockHash = hash_block) -> None:
        self.root = Prefix(None, (), 0, [])
        self._num_groups = num_groups
        self._hash_block = hash_block
        self._prefixes: WeakValueDictionary[int, Prefix] = WeakValueDictionary()
        self._prefix_of: dict[int, Prefix] = {}  # by published block

    def __contains__(self, block_id: int) -> bool:
        """Whether the block is published."""
        return block_id in self._prefix_of

    def __len__(self) -> int:
        """Published blocks."""
        return len(self._prefix_of)

    def match(self, token_ids: Sequence[int], block_size: int, max_blocks: int) -> list[Prefix]:
        """The known prefixes of token_ids, shortest first: at most max_blocks."""
        path: list[Prefix] = []
        prefix = self.root
        for start in range(0, max_blocks * block_size, block_size):
            block_tokens = tuple(token_ids[start : start + block_size])
            known = self._prefixes.get(self._hash_block(prefix.hash, block_tokens))
            if known is None or not known.continues(prefix, block_tokens):
                break
            path.append(known)
            prefix = known
        return path

    def extend(self, parent: Prefix, token_ids: tuple[int, ...]) -> Prefix | None:
        """The prefix that continues parent, known or new. None: another text with the same hash is known."""
        block_hash = self._hash_block(parent.hash, token_ids)
        prefix = self._prefixes.get(block_hash)
        if prefix is None:
            prefix = Prefix(parent, token_ids, block_hash, [NULL_BLOCK] * self._num_groups)
            self._prefixes[block_hash] = prefix
        return prefix if prefix.continues(parent, token_ids) else None

    def publish(self, prefix: Prefix, group: int, block_id: int) -> None:
        """Offer a block to others. The first one wins: a second block of the same text stays private."""
        if prefix.block_ids[group] == NULL_BLOCK:
            assert block_id not in self._prefix_of, f"block {block_id} is published for another text"
            prefix.block_ids[group] = block_id
            self._prefix_of[block_id] = prefix

    def withdraw(self, block_id: int) -> None:
        """Stop offering a block, if it was offered: its content is about to change."""
        prefix = self._prefix_of.pop(block_id, None)
        if prefix is not None:
            prefix.block_ids[prefix.block_ids.index(block_id)] = NULL_BLOCK

    def check_invariants(self) -> None:
        """AssertionError when blocks and prefixes disagree."""
        assert NULL_BLOCK not in self._prefix_of, "the null block holds nothing"
        for block_id, prefix in self._prefix_of.items():
            assert prefix.block_ids.count(block_id) == 1, f"block {block_id}: its prefix does not know it"
            assert self._prefixes.get(prefix.hash) is prefix, f"block {block_id}: nobody can find its prefix"
        for prefix in self._prefixes.values():
            assert prefix.parent is not None, "the root is never looked up"
            assert prefix.hash == self._hash_block(prefix.parent.hash, prefix.token_ids), (
                "hash of another text"
            )
            for block_id in prefix.block_ids:
                assert block_id == NULL_BLOCK or self._prefix_of[block_id] is prefix, (
                    f"{block_id} is not published"
                )


def longest_hit(path: Sequence[Prefix], windows: Sequence[int | None], block_size: int) -> int:
    """Blocks of `path` that a new sequence can start from, in every layer group at once.

    windows: of the groups. After n blocks a group needs those that its next query sees: all n without a
    window, else the last ones. One pass, remembering where each group's run without a gap began.
    """
    run_starts = [0] * len(windows)
    longest = 0
    for num_blocks, prefix in enumerate(path, start=1):
        for group, block_id in enumerate(prefix.block_ids):
            if block_id == NULL_BLOCK:
                run_starts[group] = num_blocks
        num_tokens = num_blocks * block_size
        if all(
            start <= first_visible_block(num_tokens, window, block_size)
            for start, window in zip(run_starts, windows, strict=True)
        ):
            longest = num_blocks
    return longest
