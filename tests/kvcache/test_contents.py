"""Whatever the manager is asked to do, every live sequence reads back its own K/V.

A simulated device does with a manager's answers what a real one does: it keeps tables by their updates alone,
applies a step's copies in order and then writes the step's tokens. The K/V of a token depends on all tokens
before it, so each slot holds (layer group, text up to and including the token). A Hypothesis state machine
drives both and compares what each query would see with what it should see.
"""

from collections import Counter
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import NULL_BLOCK, Growth, KVCacheManager
from kvcache.prefix_cache import BlockHash, hash_block

Text = tuple[int, ...]

FULL = LayerGroup((0,))
GROUPS = [
    (FULL,),
    (LayerGroup((0,), 5),),
    (LayerGroup((0,), 1),),
    (FULL, LayerGroup((1,), 4)),
    (LayerGroup((0,), 7), FULL, LayerGroup((2,), 2)),
]
SUFFIXES = st.lists(st.integers(0, 2), min_size=1, max_size=4)


def three_hashes(parent_hash: int, token_ids: Text) -> int:
    """Collides all the time, even among the first blocks."""
    return hash_block(parent_hash, token_ids) % 3


@dataclass
class Sequence:
    """The caller's view: its text, how much of it is computed, and the device's copy of its tables."""

    token_ids: list[int]
    num_computed_tokens: int
    tables: list[list[int]]
    passed_by: int  # the largest query position that windows were told to have reached
    num_slots: int = 0

    def text(self, position: int) -> Text:
        return tuple(self.token_ids[: position + 1])


@dataclass
class Device:
    """A pool of slots, (block, offset) -> what was last written there."""

    block_size: int
    slots: dict[tuple[int, int], object] = field(default_factory=dict)

    def update_tables(self, sequence: Sequence, growth: Growth) -> None:
        for update in growth.updates:
            assert update.block_ids
            table = sequence.tables[update.group]
            table[update.start : update.start + len(update.block_ids)] = update.block_ids

    def copy(self, source: int, destination: int) -> None:
        for offset in range(self.block_size):
            self.slots[destination, offset] = self.slots.get((source, offset))

    def slot(self, sequence: Sequence, group: int, position: int) -> tuple[int, int]:
        return sequence.tables[group][position // self.block_size], position % self.block_size

    def write(self, sequence: Sequence, start: int, stop: int, *, garbage: bool = False) -> None:
        for group in range(len(sequence.tables)):
            for position in range(start, stop):
                value = None if garbage else (group, sequence.text(position))
                self.slots[self.slot(sequence, group, position)] = value

    def check_visible(
        self, sequence: Sequence, group: int, window: int | None, query: int, stop: int
    ) -> None:
        """Queries from position `query` on see their own text over what is computed, up to `stop`."""
        first = 0 if window is None else max(0, query - window + 1)
        for position in range(first, stop):
            assert self.slots[self.slot(sequence, group, position)] == (group, sequence.text(position))


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Texts that often share a beginning."""
    return [0] * draw(st.integers(0, 14)) + draw(st.lists(st.integers(0, 1), min_size=1, max_size=6))


class Contents(RuleBasedStateMachine):
    @initialize(
        groups=st.sampled_from(GROUPS),
        block_size=st.integers(1, 4),
        num_blocks=st.integers(1, 24),
        caching=st.booleans(),
        hash_function=st.sampled_from([hash_block, hash_block, three_hashes]),
    )
    def start(
        self,
        groups: tuple[LayerGroup, ...],
        block_size: int,
        num_blocks: int,
        caching: bool,
        hash_function: BlockHash,
    ) -> None:
        config = KVCacheConfig(num_blocks, block_size, groups, enable_prefix_caching=caching)
        self.config = config
        self.windows = [group.window for group in groups]
        self.manager = KVCacheManager(config, hash_function)
        self.device = Device(block_size)
        self.sequences: dict[int, Sequence] = {}
        self.known_texts: list[list[int]] = []  # of sequences that are gone
        self.num_started = 0

    @rule(token_ids=texts())
    def add(self, token_ids: list[int]) -> None:
        self._start(token_ids)

    def _start(self, token_ids: list[int]) -> int:
        self.num_started += 1
        sequence_id = self.num_started
        num_free = self.manager.num_free_blocks
        num_cached = self.manager.add(sequence_id, token_ids)
        assert num_cached % self.config.block_size == 0
        assert num_cached < len(token_ids)
        assert num_cached == 0 or self.config.enable_prefix_caching
        assert num_cached > 0 or self.manager.num_free_blocks == num_free
        self.sequences[sequence_id] = Sequence(
            list(token_ids), num_cached, self._tables(sequence_id), num_cached
        )
        return sequence_id

    @rule(token_ids=texts(), stays=st.booleans())
    def run_prompt(self, token_ids: list[int], stays: bool) -> None:
        """The usual course: a whole prompt in one step, published, and perhaps over at once."""
        sequence_id = self._start(token_ids)
        copies: list[tuple[int, int]] = []
        if self._grow(sequence_id, len(token_ids), copies):
            self._run_step({sequence_id: len(token_ids)}, copies, fails=False)
            self.manager.commit(sequence_id, token_ids, len(token_ids))
        if not stays:
            self._free(sequence_id)

    @precondition(lambda self: self.sequences)
    @rule(suffix=SUFFIXES, rewound=st.integers(0, 6), stays=st.booleans(), data=st.data())
    def fork(self, suffix: list[int], rewound: int, stays: bool, data: st.DataObject) -> None:
        """The child goes on from the parent's text, or a part of it, and the parent may leave it alone."""
        parent_id = self._draw(data)
        parent = self.sequences[parent_id]
        num_tokens = max(0, parent.num_computed_tokens - rewound)
        self.num_started += 1
        if not self.manager.fork(parent_id, self.num_started, num_tokens):
            assert num_tokens < parent.passed_by
            assert any(group.window is not None for group in self.config.groups)
            return
        token_ids = parent.token_ids[:num_tokens] + suffix
        tables = self._tables(self.num_started)
        self.sequences[self.num_started] = Sequence(token_ids, num_tokens, tables, parent.passed_by)
        parent.num_slots = 0  # it must ask again before it writes
        if not stays:
            self._free(parent_id)

    @precondition(lambda self: self.sequences)
    @rule(
        max_chunks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
        outcome=st.sampled_from(["fails", "is published", "is not published"]),
        data=st.data(),
    )
    def step(self, max_chunks: list[int], outcome: str, data: st.DataObject) -> None:
        """Several sequences grow, and the last to get room may be preempted for the next; then all run."""
        batch: dict[int, int] = {}
        copies: list[tuple[int, int]] = []
        for max_chunk in max_chunks:
            sequence_id = self._draw(data)
            num_tokens = self._next_num_tokens(sequence_id, max_chunk)
            if sequence_id in batch or self._grow(sequence_id, num_tokens, copies):
                batch.setdefault(sequence_id, num_tokens)
            elif len(batch) > 1:
                self._free(batch.popitem()[0])
        self._run_step(batch, copies, fails=outcome == "fails")
        for sequence_id, num_tokens in batch.items():
            if outcome == "fails":
                self._free(sequence_id)
            elif outcome == "is published":
                self.manager.commit(sequence_id, self.sequences[sequence_id].token_ids, num_tokens)

    @precondition(lambda self: self.sequences)
    @rule(suffix=SUFFIXES, rewound=st.integers(1, 6), data=st.data())
    def rewind(self, suffix: list[int], rewound: int, data: st.DataObject) -> None:
        """The last tokens are replaced by others, as far back as no window has passed."""
        sequence = self.sequences[self._draw(data)]
        lowest = 0 if set(self.windows) == {None} else min(sequence.passed_by, sequence.num_computed_tokens)
        sequence.num_computed_tokens = max(lowest, sequence.num_computed_tokens - rewound)
        sequence.token_ids[sequence.num_computed_tokens :] = suffix
        sequence.num_slots = 0

    @precondition(lambda self: self.sequences)
    @rule(num_behind=st.integers(0, 6), data=st.data())
    def commit(self, num_behind: int, data: st.DataObject) -> None:
        sequence_id = self._draw(data)
        sequence = self.sequences[sequence_id]
        num_tokens = max(0, sequence.num_computed_tokens - num_behind)
        self.manager.commit(sequence_id, sequence.token_ids, num_tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self._free(self._draw(data))

    @precondition(lambda self: self.known_texts)
    @rule(suffix=SUFFIXES, data=st.data())
    def look_up(self, suffix: list[int], data: st.DataObject) -> None:
        """What is found of a text that has run at some time is what was written for it."""
        token_ids = data.draw(st.sampled_from(self.known_texts))
        sequence_id = self._start(token_ids + suffix)
        self.every_sequence_sees_its_own_text()
        self._free(sequence_id)

    def _draw(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.sequences)))

    def _tables(self, sequence_id: int) -> list[list[int]]:
        return [list(table) for table in self.manager.block_tables(sequence_id)]

    def _free(self, sequence_id: int) -> None:
        self.known_texts.append(self.sequences.pop(sequence_id).token_ids)
        self.manager.free(sequence_id)

    def _next_num_tokens(self, sequence_id: int, max_chunk: int) -> int:
        sequence = self.sequences[sequence_id]
        if sequence.num_computed_tokens == len(sequence.token_ids):
            sequence.token_ids.append(len(sequence.token_ids) % 2)  # as if it had been sampled
        return min(len(sequence.token_ids), sequence.num_computed_tokens + max_chunk)

    def _run_step(self, batch: dict[int, int], copies: list[tuple[int, int]], *, fails: bool) -> None:
        """What a device does. A step that fails may leave anything where it should have written."""
        for source, destination in copies:
            self.device.copy(source, destination)
        for sequence_id, num_tokens in batch.items():
            self._check_sole_writer(sequence_id)
            sequence = self.sequences[sequence_id]
            self.device.write(sequence, sequence.num_computed_tokens, num_tokens, garbage=fails)
        for sequence_id, num_tokens in () if fails else batch.items():
            sequence = self.sequences[sequence_id]
            for group, window in enumerate(self.windows):
                self.device.check_visible(sequence, group, window, sequence.num_computed_tokens, num_tokens)
            sequence.num_computed_tokens = num_tokens

    def _check_sole_writer(self, sequence_id: int) -> None:
        sequence = self.sequences[sequence_id]
        holders = self._holders()
        for table in sequence.tables:
            for block_id in table[sequence.num_computed_tokens // self.config.block_size :]:
                assert holders[block_id] == 1, "may write into a block of others"

    def _grow(self, sequence_id: int, num_tokens: int, copies: list[tuple[int, int]]) -> bool:
        sequence = self.sequences[sequence_id]
        if num_tokens <= sequence.num_slots:
            return True
        before = self._state()
        num_needed = self._num_needed(sequence_id, num_tokens)
        growth = self.manager.grow(sequence_id, sequence.num_computed_tokens, num_tokens)
        assert (growth is not None) == (num_needed <= before[0]), "refused or granted wrongly"
        if growth is None:
            assert self._state() == before, "a refusal changed something"
            return False
        assert self.manager.num_free_blocks == before[0] - num_needed
        assert growth.num_slots >= num_tokens
        self.device.update_tables(sequence, growth)
        copies += growth.copies
        sequence.num_slots = growth.num_slots
        sequence.passed_by = sequence.num_computed_tokens
        return True

    def _holders(self) -> Counter[int]:
        tables = [table for key in self.sequences for table in self.manager.block_tables(key)]
        return Counter(block_id for table in tables for block_id in table if block_id != NULL_BLOCK)

    def _state(self) -> tuple[int, list[object]]:
        return self.manager.num_free_blocks, [self.manager.block_tables(key) for key in self.sequences]

    def _num_needed(self, sequence_id: int, num_tokens: int) -> int:
        """Free blocks that a grow() takes, by the definition of sharing and of windows."""
        size, query = self.config.block_size, self.sequences[sequence_id].num_computed_tokens
        holders = self._holders()
        num_needed = 0
        for table, group in zip(self.manager.block_tables(sequence_id), self.config.groups, strict=True):
            num_needed += max(0, -(-num_tokens // size) - len(table))
            for index, block_id in enumerate(table):
                last_position = index * size + size - 1
                if last_position >= query:
                    num_needed += holders[block_id] > 1
                elif group.window is not None and last_position < query - group.window + 1:
                    num_needed -= holders[block_id] == 1
        return num_needed

    @invariant()
    def every_sequence_sees_its_own_text(self) -> None:
        for sequence_id, sequence in self.sequences.items():
            query = sequence.num_computed_tokens
            for group, table in enumerate(self.manager.block_tables(sequence_id)):
                for mine, theirs in zip(sequence.tables[group], table, strict=True):
                    assert theirs in (mine, NULL_BLOCK), "the device was not told of a change"
                self.device.check_visible(sequence, group, self.windows[group], query, query)

    @invariant()
    def free_and_held_blocks_are_all_blocks(self) -> None:
        self.manager.check_invariants()
        num_held = len(self._holders())
        assert self.manager.num_free_blocks + num_held == self.manager.num_blocks == self.config.num_blocks
        assert self.manager.usage == num_held / self.config.num_blocks

    def teardown(self) -> None:
        for sequence_id in list(self.sequences):
            self._free(sequence_id)
            self.manager.check_invariants()
        assert self.manager.num_free_blocks == self.manager.num_blocks


TestContents = Contents.TestCase
TestContents.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
