"""A simulated device whose tokens come out wrong if anything in a step's bookkeeping is.

What it stores for a token depends on what it reads back for the token before, as K/V do in a transformer, and
what it samples depends on what it reads for the last position. So any error in block tables, copies, rows or
positions changes the tokens, and `expected_tokens` knows those from the request alone.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import NULL_BLOCK
from scheduler import Finish, NewRow, Request, StepInput, StepOutput
from scheduler.beams import BeamSearch, Candidate, Hypothesis
from scheduler.step import TokenLogprobs

VOCABULARY = 50
NEVER_WRITTEN = (-1, -1, -1)
POISON = (-2, -2, -2)  # what a failed step leaves


@dataclass(frozen=True)
class FakeSampling:
    """error_after: the row has no distribution once it has generated that many tokens. num_candidates: of a
    beam; tokens from num_possible on are impossible."""

    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    error_after: int | None = None
    num_candidates: int = 0
    num_possible: int = VOCABULARY


def digest_of(previous: int, token_id: int, position: int, group: int) -> int:
    """What a slot stores: previous is that of the position before, or 0 if it is not seen."""
    return hash((previous, token_id, position, group))


def sampled_token(digests: list[int], sampling: FakeSampling, output_index: int) -> int:
    """digests: of the last position, one a layer group."""
    return hash((*digests, sampling.seed, output_index)) % VOCABULARY


def candidates_of(digests: list[int], sampling: FakeSampling) -> list[Candidate]:
    """A beam's best continuations, best first."""
    log_probs = [-(hash((*digests, sampling.seed, token)) % 9973 + 1) / 2000 for token in range(VOCABULARY)]
    log_probs[sampling.num_possible :] = [-inf] * (VOCABULARY - sampling.num_possible)
    best = sorted(range(VOCABULARY), key=lambda token: -log_probs[token])[: sampling.num_candidates]
    return [Candidate(token, log_probs[token]) for token in best]


def expected_hypotheses(request: Request, groups: tuple[LayerGroup, ...]) -> list[Hypothesis]:
    """What a beam search finds on such a device."""
    sampling = request.sampling
    assert isinstance(sampling, FakeSampling)
    assert request.beam is not None
    windows = [group.window for group in groups]
    prompt = [0] * len(windows)
    for position, token_id in enumerate(request.prompt_token_ids):
        prompt = _digests(prompt, windows, token_id, position)
    search = BeamSearch(request.beam, request.max_new_tokens)
    beams = [prompt]
    while not search.is_over:
        children = search.advance([candidates_of(digests, sampling) for digests in beams])
        position = len(request.prompt_token_ids) + len(search.beams[0].token_ids) - 1 if children else 0
        beams = [_digests(beams[child.parent], windows, child.token_id, position) for child in children]
    return search.hypotheses


def expected_tokens(request: Request, output_index: int, groups: tuple[LayerGroup, ...]) -> list[int]:
    """What an output is on a device that has nothing else to do, and all the memory there is."""
    sampling = request.sampling
    assert isinstance(sampling, FakeSampling)
    windows = [group.window for group in groups]
    tokens: list[int] = []
    digests = [0] * len(windows)
    for position, token_id in enumerate(request.prompt_token_ids):
        digests = _digests(digests, windows, token_id, position)
    while len(tokens) < request.max_new_tokens and len(tokens) != sampling.error_after:
        tokens.append(sampled_token(digests, sampling, output_index))
        if tokens[-1] in sampling.stop_token_ids:
            break
        digests = _digests(digests, windows, tokens[-1], len(request.prompt_token_ids) + len(tokens) - 1)
    return tokens


def _digests(previous: list[int], windows: list[int | None], token_id: int, position: int) -> list[int]:
    return [
        digest_of(0 if window == 1 else previous[group], token_id, position, group)
        for group, window in enumerate(windows)
    ]


@dataclass
class Row:
    """What the device knows of a row."""

    new: NewRow
    tables: list[list[int]]
    num_computed_tokens: int
    num_generated_tokens: int
    last_token_id: int | None = None
    is_broken: bool = (
        False  # reads what a failed step has left, until the host knows: its tokens mean nothing
    )


@dataclass
class PendingFake:
    device: "FakeDevice"
    output: StepOutput | Exception

    def result(self) -> StepOutput:
        assert self.device.in_flight.popleft() is self, "results are read in the order of the launches"
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@dataclass
class FakeDevice:
    """A Runner. The pool maps a slot, (block, index), to (digest, token, position).

    fail_launch / fail_result: step ids that raise there, with what they raise. A step that fails in result()
    leaves rubbish where it should have written.
    """

    config: KVCacheConfig
    max_steps_in_flight: int = 1
    fail_launch: dict[int, Exception] = field(default_factory=dict)
    fail_result: dict[int, Exception] = field(default_factory=dict)
    pool: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    in_flight: deque[PendingFake] = field(default_factory=deque)
    steps: list[StepInput] = field(default_factory=list)

    def launch(self, step: StepInput) -> PendingFake:
        assert len(self.in_flight) < self.max_steps_in_flight, "too many steps in flight"
        self.steps.append(step)
        if step.step_id in self.fail_launch:
            raise self.fail_launch[step.step_id]
        self._apply(step)
        output = self._compute(step)
        failure = self.fail_result.get(step.step_id)
        if failure is not None:
            self._poison(step)
        self.in_flight.append(PendingFake(self, failure or output))
        return self.in_flight[-1]

    def _apply(self, step: StepInput) -> None:
        for new in step.new_rows:
            assert len(new.token_ids) == new.num_prompt_tokens + new.num_generated_tokens
            tables = [list(block_ids) for block_ids in new.block_ids]
            self.rows[new.row] = Row(new, tables, new.num_computed_tokens, new.num_generated_tokens)
        for update in step.new_blocks:
            table = self.rows[update.row].tables[update.group]
            table[update.start : update.start + len(update.block_ids)] = update.block_ids
        for source, destination in step.block_copies:
            for index in range(self.config.block_size):
                self.pool[destination, index] = self.pool.get((source, index), NEVER_WRITTEN)

    def _compute(self, step: StepInput) -> StepOutput:
        written: Counter[tuple[int, int]] = Counter()
        sampling: list[int] = []
        for row, token_ids, samples in _packed(step, self.rows):
            for token_id in token_ids:
                written.update(self._write(self.rows[row], token_id))
            sampling += [row] * samples
        assert max(written.values()) == 1, "two rows of a step write the same slot"
        assert sum(written.values()) == step.num_tokens * len(self.config.groups)
        verdicts = [self._sample(self.rows[row]) for row in sampling]
        answers = [self._candidates(self.rows[row]) for row in sampling]
        tokens, finishes = [token for token, _ in verdicts], [finish for _, finish in verdicts]
        return StepOutput(step.step_id, tokens, finishes, answers)

    def _candidates(self, row: Row) -> TokenLogprobs | None:
        sampling = row.new.sampling
        assert isinstance(sampling, FakeSampling)
        if not sampling.num_candidates:
            return None
        last = row.num_computed_tokens - 1
        digests = [self._read(row, group, last)[0] for group in range(len(self.config.groups))]
        candidates = candidates_of(digests, sampling)
        return TokenLogprobs(
            0.0, tuple(each.token_id for each in candidates), tuple(each.log_prob for each in candidates)
        )

    def _write(self, row: Row, token_id: int) -> Iterator[tuple[int, int]]:
        position = row.num_computed_tokens
        for group in range(len(self.config.groups)):
            sees_previous = position > 0 and self.config.groups[group].window != 1
            previous = self._read(row, group, position - 1)[0] if sees_previous else 0
            slot = self._slot(row, group, position)
            self.pool[slot] = (digest_of(previous, token_id, position, group), token_id, position)
            yield slot
        row.num_computed_tokens += 1

    def _sample(self, row: Row) -> tuple[int, int]:
        sampling = row.new.sampling
        assert isinstance(sampling, FakeSampling)
        if row.num_generated_tokens == sampling.error_after:
            row.last_token_id = 0  # what the next step computes, if it is in flight already
            return row.last_token_id, Finish.ERROR
        last = row.num_computed_tokens - 1
        for group in range(len(self.config.groups)):
            self._check_visible(row, group, last)
        digests = [self._read(row, group, last)[0] for group in range(len(self.config.groups))]
        row.last_token_id = sampled_token(digests, sampling, row.new.output_index)
        row.num_generated_tokens += 1
        if row.last_token_id in sampling.stop_token_ids:
            return row.last_token_id, Finish.STOP
        done = row.num_generated_tokens >= row.new.max_new_tokens
        return row.last_token_id, Finish.LENGTH if done else Finish.NONE

    def _check_visible(self, row: Row, group: int, last: int) -> None:
        """Every position that the query at `last` sees holds its own token, computed after the one before
        it."""
        window = self.config.groups[group].window
        first = 0 if window is None else max(0, last - window + 1)
        previous = None
        for position in range(first, last + 1):
            digest, token_id, stored = self._read(row, group, position)
            row.is_broken |= stored == POISON[2]
            if row.is_broken:
                return
            assert stored == position, f"position {position} of a row reads position {stored}"
            if previous is not None and window != 1:
                assert digest == digest_of(previous, token_id, position, group), "a stale token"
            previous = digest

    def _read(self, row: Row, group: int, position: int) -> tuple[int, int, int]:
        return self.pool.get(self._slot(row, group, position), NEVER_WRITTEN)

    def _slot(self, row: Row, group: int, position: int) -> tuple[int, int]:
        block, index = divmod(position, self.config.block_size)
        assert row.tables[group][block] != NULL_BLOCK, "a block that a window has passed"
        return row.tables[group][block], index

    def _poison(self, step: StepInput) -> None:
        num_tokens = Counter(step.decode_rows)
        num_tokens.update({chunk.row: len(chunk.token_ids) for chunk in step.chunks})
        for index, num in num_tokens.items():
            row = self.rows[index]
            row.is_broken = True
            for position in range(row.num_computed_tokens - num, row.num_computed_tokens):
                for group in range(len(self.config.groups)):
                    self.pool[self._slot(row, group, position)] = POISON


def _packed(step: StepInput, rows: dict[int, Row]) -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """(row, token ids, samples) in packed order."""
    for row in step.decode_rows:
        last = rows[row].last_token_id
        assert last is not None, "a decode row whose last token the device has not sampled"
        yield row, (last,), True
    for chunk in step.chunks:
        assert chunk.start == rows[chunk.row].num_computed_tokens
        yield chunk.row, chunk.token_ids, chunk.samples
