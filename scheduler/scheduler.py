"""Decides what each step computes. Pure and synchronous: no device, no event loop, no clock of its own."""

from collections import Counter
from itertools import repeat

from kvcache.manager import KVCacheManager
from scheduler.batch import Batch, LaunchedStep, PartialChunk
from scheduler.beam_steps import BeamSteps
from scheduler.beams import Candidate
from scheduler.config import SchedulerConfig
from scheduler.policy import RankedList
from scheduler.request import FinishReason, LastToken, Request, Sequence, SequenceOutput
from scheduler.roster import Roster
from scheduler.running import RunningSequences
from scheduler.stats import Counters, FailureReason, SchedulerStats, snapshot
from scheduler.step import Finish, StepInput, StepOutput, TokenLogprobs

_REASONS: dict[int, FinishReason] = {
    Finish.STOP: FinishReason.STOP,
    Finish.LENGTH: FinishReason.LENGTH,
}
_ERROR = int(Finish.ERROR)  # a plain integer, because it is compared with every token's verdict
_NO_DISTRIBUTION = (
    "no token can be chosen: the model's output is not a distribution (NaN or infinite logits), "
    "or what the request bans and allows leaves nothing"
)


class Scheduler:
    """One rule: each sequence's num_computed_tokens catches up with its num_tokens, under one budget a step.

    A step serves first one token to each decoding sequence, then by rank chunks of running sequences and of
    waiting ones, as long as these fit: nobody overtakes in the queue, so under "fcfs" running ones come
    first. Who has to give way when blocks or rows run out is RunningSequences' victim rule.

    schedule() plans a step and takes it as launched; update() or fail() must follow for every step.
    schedule() may be called again before: a sequence whose step samples then has a pending token, and its
    next step is a decode row whose token only the device knows. If it turns out to have ended, what it
    sampled after its end is dropped.

    Every added sequence ends with exactly one SequenceOutput that has a summary. `now` is in seconds of the
    caller's clock, that of Request.arrival_time.
    """

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager) -> None:
        self.config = config
        self._kv = kv
        self._counters = Counters()
        self._waiting = RankedList()
        self._running = RunningSequences(kv, self._waiting, config.max_num_seqs, self._counters)
        self._roster = Roster(config.policy, self._waiting, self._running, self._counters)
        self._beams = BeamSteps(kv, self._running, self._roster)
        self._in_flight: dict[int, LaunchedStep] = {}

    # What the caller wants

    def add(self, request: Request) -> None:
        """Queue a request. ValueError: its id is in use, or it could never run."""
        self._check(request)
        self._roster.add(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> bool:
        """End a request at the next step boundary: schedule(), update() or fail(). False: there is none."""
        return self._roster.ask_end(request_id, None, reason)

    def finish(self, request_id: str, output_index: int, reason: FinishReason = FinishReason.STOP) -> bool:
        """The same for one output (a stop string was matched, say). False: it has ended already."""
        return self._roster.ask_end(request_id, output_index, reason)

    def abort_all(self, reason: FinishReason, now: float, error: str | None = None) -> list[SequenceOutput]:
        """End every request now. Steps in flight may still be updated; their tokens are dropped.

        If a bug makes giving back blocks raise, take_outputs() still has every end.
        """
        self._roster.end_all(reason, now, error)
        return self.take_outputs()

    # Steps

    def schedule(self, now: float) -> StepInput | None:
        """The next step, to be launched at once. None: nothing can be computed before another update()."""
        self._roster.apply_ends(now)
        batch = Batch(self.config.max_num_batched_tokens)
        self._plan_decodes(batch)
        self._plan_chunks(batch, now)
        if batch.num_tokens:
            return self._launch(batch)
        assert self._in_flight or not self.has_work, "sequences are left, and none can run"
        return None

    def update(self, output: StepOutput, now: float) -> list[SequenceOutput]:
        """Take in what a step sampled. Returns new tokens, and the ends of sequences, since the last call."""
        assert output.step_id == next(iter(self._in_flight)), "steps are read in the order of their launch"
        step = self._in_flight.pop(output.step_id)
        self._roster.apply_ends(now)
        for index, scores in output.prompt_logprobs.items():
            self._tell_scores(*step.scored[index], tuple(scores))
        self._append_tokens(step.sampling, output, now)
        for chunk in step.partial:
            self._running.publish_chunk(chunk)
        return self.take_outputs()

    def fail(self, step_id: int, error: str, now: float) -> list[SequenceOutput]:
        """A step raised: the requests that had a part in it end with ERROR. Returns as update() does.

        All of their outputs: some may have been forked from what the step should have computed.
        """
        step = self._in_flight.pop(step_id)
        self._counters.failures[FailureReason.STEP] += len(step.sequences)
        self._roster.apply_ends(now)
        for sequence in step.sequences:
            self._roster.end_request(sequence.request, FinishReason.ERROR, now, error)
        return self.take_outputs()

    def take_outputs(self) -> list[SequenceOutput]:
        """What has not been returned yet: requests that ended within schedule(), when no update() follows."""
        outputs, self._roster.outputs = self._roster.outputs, []
        return outputs

    # What the caller sees

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._roster.requests)

    def stats(self) -> SchedulerStats:
        """Numbers only, none of them looked for: cheap, and safe to ask for from another thread."""
        num_running = len(self._running)
        num_waiting = self._roster.num_sequences - num_running
        return snapshot(self._counters, self._kv, num_running, num_waiting, len(self._in_flight))

    def check_invariants(self) -> None:
        """AssertionError when any bookkeeping disagrees. Linear; for tests and idle moments."""
        self._kv.check_invariants()
        self._running.check_invariants()
        for sequence in self._waiting:
            assert sequence.row == -1, "a waiting sequence has a row"
            assert sequence.num_computed_tokens == 0, "a waiting sequence has computed tokens"
        leaders = [*self._waiting, *self._running.all]
        listed = [each for leader in leaders for each in (leader, *leader.followers)]
        alive = self._roster.sequences
        listed += self._beams.check_invariants(alive)
        assert Counter(listed) == Counter(alive), "a sequence is lost, or listed twice"
        assert len(alive) == self._roster.num_sequences, "miscounted"
        pending = Counter(each for step in self._in_flight.values() for each in step.sampling)
        for sequence in listed:
            assert sequence.finish_reason is None, "a sequence that has ended is listed"
            assert sequence.num_pending_tokens == pending[sequence], "pending tokens without a step, or lost"

    # Inside

    def _check(self, request: Request) -> None:
        num_prompt_tokens = len(request.prompt_token_ids)
        num_tokens = num_prompt_tokens + request.max_new_tokens
        limits = self.config
        if request.request_id in self._roster.requests:
            raise ValueError(f"request {request.request_id!r} is running")
        if num_prompt_tokens < 1 or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt token and a new token at least")
        if request.num_sequences > limits.max_num_seqs and request.beam is not None:
            raise ValueError(f"a beam width of {request.beam.width}: at most {limits.max_num_seqs}")
        max_num_outputs = limits.max_num_seqs if request.beam is None else request.beam.width
        if not 1 <= request.num_outputs <= max_num_outputs:
            raise ValueError(f"num_outputs={request.num_outputs}: must be in [1, {max_num_outputs}]")
        if num_tokens > limits.max_model_len:
            raise ValueError(f"{num_tokens} tokens: at most max_model_len={limits.max_model_len}")
        if not self._kv.fits(num_tokens - 1, limits.max_num_batched_tokens):
            raise ValueError(f"{num_tokens} tokens do not fit the KV cache of {self._kv.num_blocks} blocks")

    def _plan_decodes(self, batch: Batch) -> None:
        """Safe while sequences are preempted: a victim comes later in the list, or is its last."""
        batch.decodes = [
            sequence
            for sequence in self._running.decoding
            if sequence.num_computed_tokens < sequence.num_slots or self._can_decode(sequence, batch)
        ]

    def _can_decode(self, sequence: Sequence, batch: Batch) -> bool:
        num_computed_tokens = sequence.num_computed_tokens
        if num_computed_tokens == sequence.max_num_computed_tokens:
            return False  # its last token is pending
        return self._running.make_room(sequence, num_computed_tokens + 1, batch)

    def _plan_chunks(self, batch: Batch, now: float) -> None:
        """Known tokens by rank, of running and of waiting sequences."""
        for sequence in [*self._running.prefilling]:
            self._admit(batch, now, better_than=sequence)
            if batch.num_tokens_left == 0:
                return
            if sequence not in batch.preempted:
                self._plan_chunk(sequence, batch)
        self._admit(batch, now)

    def _plan_chunk(self, sequence: Sequence, batch: Batch) -> None:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        num_tokens = min(num_left, batch.num_tokens_left)
        if self._running.make_room(sequence, sequence.num_computed_tokens + num_tokens, batch):
            batch.add_chunk(sequence, num_tokens)

    def _admit(self, batch: Batch, now: float, better_than: Sequence | None = None) -> None:
        """Waiting sequences by rank, up to one that does not fit, was preempted just now, or has tokens that
        the host does not know yet."""
        while self._waiting and batch.num_tokens_left:
            sequence = self._waiting.best
            if better_than is not None and better_than.rank < sequence.rank:
                return
            if sequence.num_pending_tokens or sequence in batch.preempted:
                return
            if not self._running.admit(sequence, batch, now):
                return

    def _launch(self, batch: Batch) -> StepInput:
        step = batch.to_step_input(self._counters.num_steps, self._kv)
        for sequence in batch.decodes:
            sequence.num_computed_tokens += 1
            sequence.num_pending_tokens += 1
        launched = LaunchedStep(sampling=batch.decodes.copy(), partial=[])
        for index, (sequence, num_tokens) in enumerate(batch.chunks.items()):
            if step.chunks[index].next_token_ids:
                launched.scored[index] = (sequence, sequence.num_computed_tokens)
            if self._running.advance(sequence, num_tokens):
                launched.sampling.append(sequence)
            else:
                end = sequence.num_computed_tokens
                launched.partial.append(PartialChunk(sequence, end, sequence.num_preemptions))
        self._in_flight[step.step_id] = launched
        self._counters.num_steps += 1
        self._counters.num_decode_rows += len(batch.decodes)
        self._counters.num_chunk_tokens += batch.num_chunk_tokens
        return step

    def _append_tokens(self, sampling: list[Sequence], output: StepOutput, now: float) -> None:
        self._counters.num_generated_tokens += len(sampling)
        outputs = self._roster.outputs
        assert len(sampling) == len(output.token_ids) == len(output.finishes), "an answer for each"
        logprobs_of = output.logprobs or repeat(None)
        answers = zip(sampling, output.token_ids, output.finishes, logprobs_of, strict=False)
        for index, (sequence, token_id, finish, logprobs) in enumerate(answers):
            if sequence.finish_reason is not None or finish == _ERROR:
                self._drop_token(sequence, now, output.errors.get(index))
                continue
            if sequence.group is not None:
                self._take_candidates(sequence, logprobs, now)
                continue
            token_ids = sequence.token_ids
            token_ids.append(token_id)
            sequence.num_pending_tokens -= 1
            if len(token_ids) > sequence.checkpoint:
                self._pass_checkpoint(sequence, finish, now)
            if finish:
                reason, last = _ending(finish, token_id, logprobs)
                self._roster.end(sequence, reason, now, last)
            else:
                request_id, told = sequence.request.request_id, () if logprobs is None else (logprobs,)
                outputs.append(SequenceOutput(request_id, sequence.output_index, (token_id,), None, told))

    def _drop_token(self, sequence: Sequence, now: float, error: str | None) -> None:
        """It belongs to nobody: the sequence ended while the step was in flight; or it means nothing, by an
        error of its request's own, or (None) of the model."""
        self._counters.num_generated_tokens -= 1
        if sequence.finish_reason is None:
            self._counters.failures[FailureReason.CUSTOM if error else FailureReason.LOGITS] += 1
            self._roster.end(sequence, FinishReason.ERROR, now, error=error or _NO_DISTRIBUTION)

    def _take_candidates(self, sequence: Sequence, answer: TokenLogprobs | None, now: float) -> None:
        """No token has been generated yet: those of the best hypotheses count when they are told."""
        assert answer is not None, "the device did not give a beam's candidates"
        self._counters.num_generated_tokens -= 1
        self._beams.take(sequence, list(map(Candidate, answer.token_ids, answer.logprobs)), now)

    def _tell_scores(self, sequence: Sequence, start: int, scores: tuple[TokenLogprobs, ...]) -> None:
        """Log-probabilities of the prompt from position start + 1 on. What was told before a preemption is
        not told again.
        """
        new = scores[max(0, sequence.num_scored_tokens - start - 1) :]
        if new and sequence.finish_reason is None:
            sequence.num_scored_tokens += len(new)
            request_id = sequence.request.request_id
            self._roster.outputs.append(SequenceOutput(request_id, sequence.output_index, (), None, (), new))

    def _pass_checkpoint(self, sequence: Sequence, finish: int, now: float) -> None:
        """The first token, or a block to publish: all but the last of the known tokens have been computed."""
        if sequence.times.first_token is None:
            sequence.times.first_token = now
        num_tokens = len(sequence.token_ids) - 1
        assert finish or num_tokens < sequence.max_num_computed_tokens, "the device did not end it"
        self._running.publish(sequence, num_tokens)
        sequence.checkpoint = min(sequence.num_publishable_tokens, sequence.max_num_computed_tokens)


def _ending(finish: int, token_id: int, logprobs: TokenLogprobs | None) -> tuple[FinishReason, LastToken]:
    """Why and with what a sequence ends. finish: a `Finish` code other than NONE and ERROR."""
    criterion = finish - Finish.CRITERION if finish >= Finish.CRITERION else None
    last = LastToken((token_id,), () if logprobs is None else (logprobs,), criterion)
    return _REASONS.get(finish, FinishReason.STOP), last
