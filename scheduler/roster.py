"""Every sequence that has not ended, and how each ends exactly once."""

from heapq import heapify, heappop, heappush
from itertools import count

from scheduler.beams import BeamSearch
from scheduler.endings import search_endings
from scheduler.policy import RankedList, make_rank
from scheduler.request import (
    BeamGroup,
    FinishReason,
    LastToken,
    Request,
    RequestTimes,
    Sequence,
    SequenceOutput,
    SequenceStatus,
)
from scheduler.running import RunningSequences
from scheduler.stats import Counters

_Asked = tuple[
    str, int | None, FinishReason
]  # request, one of its outputs or all of them, why they shall end

_MIN_FORGOTTEN = 64


class Roster:
    """requests: the outputs of each request that have not ended, in order; a leader comes before its
    followers.

    num_sequences: how many there are in all. outputs: what the caller has not taken yet.
    """

    def __init__(
        self, policy: str, waiting: RankedList, running: RunningSequences, counters: Counters
    ) -> None:
        self.requests: dict[str, list[Sequence]] = {}
        self.num_sequences = 0
        self.outputs: list[SequenceOutput] = []
        self._policy = policy
        self._waiting = waiting
        self._running = running
        self._counters = counters
        self._asked: list[_Asked] = []  # to apply at the next step boundary
        self._time_limits: list[
            tuple[float, int, Request]
        ] = []  # a heap: when, and in which order of arrival
        self._arrivals = count()
        self._sequence_ids = count()

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for sequences in self.requests.values() for sequence in sequences]

    def add(self, request: Request) -> None:
        """Queue a request whose id is not in use."""
        arrival = next(self._arrivals)
        sequences = [
            Sequence(
                sequence_id=next(self._sequence_ids),
                request=request,
                output_index=index,
                rank=make_rank(self._policy, request, arrival, index),
                times=RequestTimes(request.arrival_time),
                status=SequenceStatus.FOLLOWING,
            )
            for index in range(request.num_sequences)
        ]
        if request.beam is not None:
            _group(sequences, BeamSearch(request.beam, request.max_new_tokens))
        self.requests[request.request_id] = sequences
        self.num_sequences += len(sequences)
        if request.max_seconds is not None:
            self._limit_time(request, request.arrival_time + request.max_seconds, arrival)
        self._lead(sequences)

    def ask_end(self, request_id: str, output_index: int | None, reason: FinishReason) -> bool:
        """Remember to end an output, or all of them (None). False: there is no such output any more."""
        sequences = self.requests.get(request_id, ())
        found = any(output_index in (None, each.output_index) for each in sequences if each.is_output)
        if found:
            self._asked.append((request_id, output_index, reason))
        return found

    def apply_ends(self, now: float) -> None:
        """End what was asked for, or has no time left, and has not ended otherwise."""
        for request_id, output_index, reason in self._asked:
            sequences = self.requests.get(request_id, ())
            self._end([each for each in sequences if output_index in (None, each.output_index)], reason, now)
        self._asked.clear()
        while self._time_limits and self._time_limits[0][0] <= now:
            self.end_request(heappop(self._time_limits)[2], FinishReason.TIME, now)

    def end_request(
        self, request: Request, reason: FinishReason, now: float, error: str | None = None
    ) -> None:
        """End what is left of a request, and nothing of a later one with the same id."""
        sequences = self.requests.get(request.request_id, [])
        if sequences and sequences[0].request is request:
            self._end(sequences, reason, now, error)

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        last: LastToken = LastToken(),  # noqa: B008 (immutable)
        error: str | None = None,
    ) -> None:
        """The one way out for a sequence in any state: its last output, and everything it held given back.

        A beam takes its whole search with it.
        """
        if sequence.group is not None:
            self.end_search(sequence.group, reason, now, error)
            return
        self._give_back(sequence)
        self._report(sequence, reason, now, last, error)
        request_id = sequence.request.request_id
        self.requests[request_id].remove(sequence)
        if not self.requests[request_id]:
            del self.requests[request_id]

    def end_search(
        self, group: BeamGroup, reason: FinishReason | None, now: float, error: str | None = None
    ) -> None:
        """reason: None when the search is over; TIME ends it with what it has found until now."""
        for sequence in reversed(group.sequences):
            self._give_back(sequence)
        endings = search_endings(group.search, reason, error)
        for sequence, ending in zip(group.sequences, endings, strict=True):
            self._report(sequence, ending.reason, now, ending.last, ending.error)
        del self.requests[group.sequences[0].request.request_id]

    def end_all(self, reason: FinishReason, now: float, error: str | None) -> None:
        """Outputs first: they are there even if bookkeeping is so broken that giving back raises."""
        for sequence in self.sequences:
            self._report(sequence, reason, now, LastToken(), error)
        self._asked.clear()
        self._time_limits.clear()
        self.requests.clear()
        self._waiting.clear()
        self._running.clear()

    def _limit_time(self, request: Request, until: float, arrival: int) -> None:
        """Requests that ended in time are forgotten once they are the most."""
        if len(self._time_limits) > 2 * len(self.requests) + _MIN_FORGOTTEN:
            self._time_limits = [each for each in self._time_limits if each[2].request_id in self.requests]
            heapify(self._time_limits)
        heappush(self._time_limits, (until, arrival, request))

    def _end(
        self, sequences: list[Sequence], reason: FinishReason, now: float, error: str | None = None
    ) -> None:
        for sequence in reversed(sequences.copy()):  # followers before their leader
            if sequence.finish_reason is None:  # other beams have ended with the first one
                self.end(sequence, reason, now, error=error)

    def _lead(self, sequences: list[Sequence]) -> None:
        """The first one computes the prompt, and the others are forked from it."""
        leader, *leader.followers = sequences
        leader.status = SequenceStatus.WAITING
        self._waiting.add(leader)

    def _give_back(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._running.release(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        elif sequence.status is SequenceStatus.PARKED:
            self._running.unpark(sequence)
        else:
            leader = self.requests[sequence.request.request_id][0]
            leader.followers.remove(sequence)
            self._running.release_row(sequence)
        if sequence.followers:
            sequence.followers[0].num_scored_tokens = sequence.num_scored_tokens
            self._lead(sequence.followers)
            sequence.followers = []

    def _report(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        last: LastToken,
        error: str | None,
    ) -> None:
        self.num_sequences -= 1
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        if sequence.group is not None:  # the tokens of its beam are no output, and were not counted
            sequence.token_ids[sequence.num_prompt_tokens :] = last.token_ids
        if not sequence.is_output:
            return
        if sequence.group is not None:
            self._counters.num_generated_tokens += len(last.token_ids)
        summary = sequence.summarize(reason, now, last, error)
        self._counters.num_finished[reason] += 1
        request_id, output_index = sequence.request.request_id, sequence.output_index
        self.outputs.append(SequenceOutput(request_id, output_index, last.token_ids, summary, last.logprobs))


def _group(sequences: list[Sequence], search: BeamSearch) -> None:
    """They become one beam search, whose first beam is the prompt."""
    group = BeamGroup(search, sequences, sequences[:1])
    for sequence in sequences:
        sequence.group = group
