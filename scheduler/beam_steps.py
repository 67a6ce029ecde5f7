"""What becomes of the sequences of a beam search when their steps have been read."""

from collections.abc import Sequence as Seq

from kvcache.manager import KVCacheManager
from scheduler.beams import Candidate, Child
from scheduler.request import BeamGroup, Sequence, SequenceStatus
from scheduler.roster import Roster
from scheduler.running import RunningSequences


class BeamSteps:
    """A beam's next token is chosen on the host, among the candidates of all beams of its search. So a beam
    never decodes: a step computes its last token as a known one, and after that it stands in
    RunningSequences.searching, until the search has the candidates of all its beams and goes on.

    Then a beam's first child continues in its place. Each further child takes a sequence of the search whose
    beam has no child, or that held none yet, and shares the parent's blocks. Only a block that both write to,
    the last one if it is not full, is copied, when they ask for room.
    """

    def __init__(self, kv: KVCacheManager, running: RunningSequences, roster: Roster) -> None:
        self._kv = kv
        self._running = running
        self._roster = roster

    def take(self, sequence: Sequence, candidates: list[Candidate], now: float) -> None:
        """What the device answered for a beam. With the last one of its search, that goes on or ends."""
        group = sequence.group
        assert group is not None
        sequence.num_pending_tokens -= 1
        self._running.publish(sequence, len(sequence.token_ids))
        group.candidates[sequence] = candidates
        if len(group.candidates) == len(group.beams):
            self._advance(group, now)

    def check_invariants(self, alive: list[Sequence]) -> list[Sequence]:
        """AssertionError when the groups of live sequences disagree. Returns those that are parked, and their
        followers."""
        parked = [sequence for sequence in alive if sequence.status is SequenceStatus.PARKED]
        for group in {id(each.group): each.group for each in alive if each.group is not None}.values():
            assert len(set(group.beams)) == len(group.search.beams), "a beam without a sequence"
            for sequence in group.sequences:
                _check(sequence, group)
        return [each for sequence in parked for each in (sequence, *sequence.followers)]

    def _advance(self, group: BeamGroup, now: float) -> None:
        if group.sequences[0].times.first_token is None:
            _tell_all_of_the_prompt(group, now)
        children = group.search.advance([group.candidates[each] for each in group.beams])
        group.candidates.clear()
        if group.search.is_over:
            self._roster.end_search(group, None, now)
            return
        group.beams = self._seat(group, children)
        for sequence, beam in zip(group.beams, group.search.beams, strict=True):
            sequence.token_ids[sequence.num_prompt_tokens :] = beam.token_ids
            self._resume(sequence)

    def _seat(self, group: BeamGroup, children: Seq[Child]) -> list[Sequence]:
        """A sequence for each child, with what its parent has computed."""
        parents = [group.beams[child.parent] for child in children]
        group.sequences[0].followers = []
        free = [each for each in reversed(group.sequences) if each not in parents]
        seats: list[Sequence] = []
        for parent in parents:
            if parent in seats:
                seats.append(free.pop())
                self._fork(parent, seats[-1])
            else:
                seats.append(parent)
        for sequence in free:
            self._vacate(sequence)
            self._running.release_row(sequence)
        return seats

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        """The child stands beside its parent then. It is parked if that is, or if there is no row for it."""
        self._vacate(child)
        if parent.status is SequenceStatus.RUNNING and self._running.take_row(child):
            self._running.fork(parent, child, parent.num_computed_tokens)
            self._running.searching.add(child)
        else:
            self._running.release_row(child)
            self._running.park(child)

    def _vacate(self, sequence: Sequence) -> None:
        """Take the blocks from a sequence that has nothing to compute, and leave it its row."""
        if sequence.status is SequenceStatus.RUNNING:
            self._running.searching.remove(sequence)
            self._kv.free(sequence.sequence_id)
        self._running.unpark(sequence)
        sequence.status = SequenceStatus.PARKED
        sequence.num_computed_tokens = 0

    def _resume(self, sequence: Sequence) -> None:
        """Its next token is known. The device is told of its row anew: the tokens before may be another's."""
        sequence.on_device = False
        if sequence.status is SequenceStatus.RUNNING:
            self._running.searching.remove(sequence)
            self._running.prefilling.add(sequence)
        else:
            self._running.unpark(sequence)
            self._running.queue(sequence)


def _tell_all_of_the_prompt(group: BeamGroup, now: float) -> None:
    """What the leader knows of the prompt, all of them report."""
    leader = group.sequences[0]
    for sequence in group.sequences:
        sequence.times.first_scheduled = leader.times.first_scheduled
        sequence.times.first_token = now
        sequence.num_cached_tokens = leader.num_cached_tokens
        sequence.num_scored_tokens = leader.num_scored_tokens


def _check(sequence: Sequence, group: BeamGroup) -> None:
    holds_beam = sequence in group.beams
    has_candidates = sequence in group.candidates
    if sequence.status is SequenceStatus.FOLLOWING:
        assert sequence in group.sequences[0].followers, "a sequence follows nobody"
    elif not holds_beam:
        assert sequence.status is SequenceStatus.PARKED, "a sequence without a beam holds something"
        assert sequence.row == -1, "a sequence without a beam has a row"
    if has_candidates:
        assert holds_beam, "candidates of no beam"
        assert sequence.num_computed_tokens in (0, len(sequence.token_ids)), (
            "candidates, yet tokens to compute"
        )
    if holds_beam and sequence.status is SequenceStatus.PARKED:
        assert has_candidates or sequence.num_pending_tokens, "nothing comes of a parked beam"
