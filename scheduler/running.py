"""The sequences that hold a row and blocks: how they get both, and how they lose them."""

from kvcache.block_table import num_blocks_for
from kvcache.manager import Growth, KVCacheManager
from scheduler.batch import Batch, PartialChunk
from scheduler.policy import RankedList
from scheduler.request import Sequence, SequenceStatus
from scheduler.stats import Counters, PreemptionReason


class RunningSequences:
    """decoding: sequences with one token left to compute, the one that the device sampled last: a decode row.
    prefilling: sequences with known tokens left to compute: chunks (prompts, prompts and outputs of preempted
    sequences that resume, the last prompt token of forked outputs, the chosen token of a beam).
    searching: beams that have nothing to compute until their search chooses their next tokens. parked: beams
    that were preempted while they stood there. They hold nothing, and queue up again with their next token.

    The victim rule. A running sequence that needs blocks preempts the worst-ranked running one, again and
    again until there are enough; when that is itself, it yields. A waiting sequence preempts only running
    ones that rank worse: under "fcfs" there are none, because nobody overtakes in the queue. A victim gives
    back row and blocks, and goes back to the queue by its rank, to compute its tokens again (what the prefix
    cache still has of them is not computed again). A search goes on when all its beams have been computed, so
    when nobody ranks worse, a beam that has not may preempt one that is searching: a pool that holds one beam
    is enough. Nobody overtakes a parked beam either.

    Against thrashing, admission grants room for all tokens that a sequence knows, at once, and leaves a block
    (of each layer group) for each running sequence that could take it away, that is, ranks better. So a
    sequence is preempted again only after better-ranked ones and itself have grown by more blocks than that
    of *new* tokens. The best-ranked sequence is never preempted, so something always finishes.

    Blocks and rows are given back as soon as a sequence ends, even if a launched step still writes them:
    devices run steps in order, and whoever gets them next writes them in a later step.
    """

    def __init__(
        self, kv: KVCacheManager, waiting: RankedList, max_num_seqs: int, counters: Counters
    ) -> None:
        """waiting: where preempted sequences go."""
        self.decoding = RankedList()
        self.prefilling = RankedList()
        self.searching = RankedList()
        self.parked = RankedList()
        self._kv = kv
        self._waiting = waiting
        self._counters = counters
        self._free_rows = list(reversed(range(max_num_seqs)))  # a stack: low rows stay in use
        self._block_size = kv.config.block_size
        self._num_groups = len(kv.config.groups)
        self._has_windows = any(group.window is not None for group in kv.config.groups)
        self._refusal = (-1, 0)  # who was refused last, and how many blocks there were for it

    def __len__(self) -> int:
        return sum(map(len, self._lists))

    @property
    def worst(self) -> Sequence:
        lists = (sequences.worst for sequences in self._lists if sequences)
        return max(lists, key=lambda sequence: sequence.rank)

    @property
    def all(self) -> list[Sequence]:
        return [sequence for sequences in self._lists for sequence in sequences]

    def make_room(self, sequence: Sequence, num_tokens: int, batch: Batch) -> bool:
        """Room for a running sequence's first num_tokens. False: it had to yield itself.

        Is also what gives back the blocks that windows have passed, so with those every chunk asks.
        """
        if num_tokens <= sequence.num_slots and not self._has_windows:
            return True
        while (growth := self._grow(sequence, num_tokens)) is None:
            victim = self._find_victim(sequence) or sequence
            assert victim is not sequence or len(self) > 1, "a sequence alone in the pool fits"
            self._preempt(victim, batch, PreemptionReason.GROWTH)
            if victim is sequence:
                return False
        batch.growths[sequence] = growth
        return True

    def admit(self, sequence: Sequence, batch: Batch, now: float) -> bool:
        """Give a waiting sequence a row, room for all tokens that it knows, and a chunk. False: not now."""
        if any(each.group is not sequence.group and each.rank < sequence.rank for each in self.parked):
            return False
        if not self._find_rows(sequence, batch) or not self._find_blocks(sequence, batch):
            return False
        num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, batch.num_tokens_left)
        growth = self._grow(sequence, sequence.num_tokens)
        if growth is None:  # a long prompt, alone in the pool, that fits because its windows give back blocks
            growth = self._grow(sequence, sequence.num_computed_tokens + num_tokens)
        assert growth is not None, "a sequence alone in the pool fits"
        batch.growths[sequence] = growth
        batch.add_chunk(sequence, num_tokens)
        self._start(sequence, now)
        return True

    def advance(self, sequence: Sequence, num_tokens: int) -> bool:
        """A chunk is launched. True: it was the last one, and a token is sampled after it."""
        sequence.on_device = True
        sequence.num_computed_tokens += num_tokens
        if sequence.num_computed_tokens < len(sequence.token_ids):
            return False
        sequence.num_pending_tokens += 1
        self.prefilling.remove(sequence)
        if sequence.group is not None:
            self.searching.add(sequence)
            return True
        self.decoding.add(sequence)
        if sequence.followers:
            self._fork(sequence)
        return True

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """The child, which has a row and no blocks, shares those of the parent's first num_tokens tokens.

        Nobody may write into a shared block before it has asked for room again.
        """
        forked = self._kv.fork(parent.sequence_id, child.sequence_id, num_tokens)
        assert forked, "the parent last asked for room before its last tokens were computed"
        child.status = SequenceStatus.RUNNING
        child.num_computed_tokens = child.num_slots = num_tokens
        child.num_publishable_tokens = 0
        parent.num_slots = parent.num_computed_tokens

    def take_row(self, sequence: Sequence) -> bool:
        """Whether the sequence has a row now."""
        if sequence.row < 0 and self._free_rows:
            sequence.row = self._free_rows.pop()
        return sequence.row >= 0

    def queue(self, sequence: Sequence) -> None:
        """A sequence that holds nothing waits for room."""
        sequence.status = SequenceStatus.WAITING
        self._waiting.add(sequence)

    def park(self, sequence: Sequence) -> None:
        """A beam that holds nothing waits for its search."""
        sequence.status = SequenceStatus.PARKED
        self.parked.add(sequence)

    def unpark(self, sequence: Sequence) -> None:
        """Nothing happens to a sequence that is not in the list."""
        if sequence in self.parked:
            self.parked.remove(sequence)

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """num_tokens of the sequence have been computed by steps that succeeded: share its full blocks."""
        if sequence.status is SequenceStatus.RUNNING and num_tokens >= sequence.num_publishable_tokens:
            self._kv.commit(sequence.sequence_id, sequence.token_ids, num_tokens)
            sequence.num_publishable_tokens = self._next_block_end(num_tokens)

    def publish_chunk(self, chunk: PartialChunk) -> None:
        """The same for a chunk, unless its blocks were given up after it had been launched."""
        if chunk.num_preemptions == chunk.sequence.num_preemptions:
            self.publish(chunk.sequence, chunk.num_computed_tokens)

    def release(self, sequence: Sequence) -> None:
        """Take row and blocks from a running sequence, and the rows kept for its followers."""
        self._list_of(sequence).remove(sequence)
        self._kv.free(sequence.sequence_id)
        for each in (sequence, *sequence.followers):
            self.release_row(each)

    def release_row(self, sequence: Sequence) -> None:
        """Nothing happens to a sequence without a row."""
        if sequence.row >= 0:
            self._free_rows.append(sequence.row)
            sequence.row = -1

    def clear(self) -> None:
        """Release every running sequence."""
        for sequence in self.all:
            self.release(sequence)
        self.parked.clear()

    def check_invariants(self) -> None:
        """AssertionError when rows or lists disagree."""
        running = self.all
        holders = [each for sequence in running for each in (sequence, *sequence.followers)]
        rows = [sequence.row for sequence in holders]
        assert sorted(rows + self._free_rows) == list(range(len(rows) + len(self._free_rows))), "rows"
        for sequence in running:
            assert sequence.status is SequenceStatus.RUNNING
            assert sequence.num_computed_tokens <= sequence.max_num_computed_tokens
        for sequence in self.decoding:
            assert sequence.on_device, "a decode row's last token is on the device"
            assert sequence.num_computed_tokens == sequence.num_tokens - 1, "one token is left to compute"
        for sequence in self.prefilling:
            assert sequence.num_pending_tokens == 0, "the tokens of a chunk are known"
            assert sequence.num_computed_tokens < sequence.num_tokens, "nothing is left to compute"
        for sequence in self.searching:
            assert sequence.group is not None, "nobody chooses its next token"
            assert sequence.num_computed_tokens == len(sequence.token_ids), "it has tokens to compute"
        for sequence in self.parked:
            assert sequence.status is SequenceStatus.PARKED
            assert sequence.row == -1, "a parked sequence has a row"

    @property
    def _lists(self) -> tuple[RankedList, ...]:
        return self.decoding, self.prefilling, self.searching

    def _list_of(self, sequence: Sequence) -> RankedList:
        return next(sequences for sequences in self._lists if sequence in sequences)

    def _grow(self, sequence: Sequence, num_tokens: int) -> Growth | None:
        growth = self._kv.grow(sequence.sequence_id, sequence.num_computed_tokens, num_tokens)
        if growth is not None:
            sequence.num_slots = min(growth.num_slots, sequence.max_num_computed_tokens)
        return growth

    def _find_rows(self, sequence: Sequence, batch: Batch) -> bool:
        num_rows = 1 + len(sequence.followers)
        while len(self._free_rows) < num_rows:
            if not self._make_way(sequence, batch, PreemptionReason.ROWS):
                return False
        return True

    def _find_blocks(self, sequence: Sequence, batch: Batch) -> bool:
        """Start the sequence in the KV cache if there are enough blocks, or can be."""
        if self._is_in_vain(sequence):
            return False
        sequence.num_computed_tokens = self._kv.add(sequence.sequence_id, sequence.findable_token_ids)
        while len(self) and self._num_spare_blocks(sequence) < self._num_missing_blocks(sequence):
            if not self._make_way(sequence, batch, PreemptionReason.ADMISSION):
                sequence.num_computed_tokens = 0
                self._kv.free(sequence.sequence_id)
                self._refusal = (sequence.sequence_id, self._num_spare_blocks(sequence))
                return False
        return True

    def _is_in_vain(self, sequence: Sequence) -> bool:
        """Whether it was refused, would be again, and looking its prompt up is for nothing."""
        if sequence.group is not None and not sequence.followers:
            return False  # it may preempt other beams that have got there since
        num_blocks = self._num_spare_blocks(sequence)
        return self._refusal[0] == sequence.sequence_id and num_blocks <= self._refusal[1]

    def _num_missing_blocks(self, sequence: Sequence) -> int:
        num_blocks = num_blocks_for(sequence.num_tokens, self._block_size)
        return (num_blocks - sequence.num_computed_tokens // self._block_size) * self._num_groups

    def _num_spare_blocks(self, sequence: Sequence) -> int:
        """Free blocks, less those kept for sequences that rank better, and for outputs to be forked."""
        num_better = sum(sequences.num_better(sequence.rank) for sequences in self._lists)
        leaders = (sequence, *self.prefilling, *self.searching)
        num_followers = sum(len(each.followers) for each in leaders)
        return self._kv.num_free_blocks - (num_better + num_followers) * self._num_groups

    def _start(self, sequence: Sequence, now: float) -> None:
        self._waiting.remove(sequence)
        self.prefilling.add(sequence)
        for each in (sequence, *sequence.followers):
            each.row = self._free_rows.pop()
        sequence.status = SequenceStatus.RUNNING
        sequence.num_publishable_tokens = self._next_block_end(sequence.num_computed_tokens)
        sequence.checkpoint = len(sequence.token_ids)
        if sequence.times.first_scheduled is None:
            sequence.times.first_scheduled = now
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._counters.num_prompt_tokens += sequence.num_prompt_tokens
            self._counters.num_cached_tokens += sequence.num_cached_tokens

    def _find_victim(self, sequence: Sequence) -> Sequence | None:
        """Who gives way to a sequence that needs something."""
        if len(self) and sequence.rank < self.worst.rank:
            return self.worst
        return next((each for each in reversed([*self.searching]) if each.group is sequence.group), None)

    def _make_way(self, sequence: Sequence, batch: Batch, why: PreemptionReason) -> bool:
        victim = self._find_victim(sequence)
        if victim is not None:
            self._preempt(victim, batch, why)
        return victim is not None

    def _preempt(self, sequence: Sequence, batch: Batch, why: PreemptionReason) -> None:
        self._counters.preemptions[why] += 1
        self._counters.preempted_tokens[why] += sequence.num_computed_tokens
        batch.drop(sequence)
        is_computed = sequence in self.searching
        self.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.on_device = False
        sequence.num_preemptions += 1
        if is_computed:
            self.park(sequence)
        else:
            self.queue(sequence)

    def _fork(self, leader: Sequence) -> None:
        """The prompt is computed: its followers share all of it but the last token.

        That one each computes itself, in a later step (its copies of shared blocks come before the
        computation, so they would miss what this step writes), and samples after it.
        """
        num_shared_tokens = leader.num_prompt_tokens - 1
        for follower in leader.followers:
            self.fork(leader, follower, num_shared_tokens)
            follower.num_cached_tokens = leader.num_cached_tokens
            follower.num_scored_tokens = leader.num_prompt_tokens  # the leader tells all of them
            follower.times.first_scheduled = leader.times.first_scheduled
            self.prefilling.add(follower)
        leader.followers = []

    def _next_block_end(self, num_tokens: int) -> int:
        return (num_tokens // self._block_size + 1) * self._block_size
