"""A driver by hand of a scheduler on a fake device: checks everything that can be checked after each step."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from zlib import crc32

import pytest

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import KVCacheManager
from scheduler import (
    FinishReason,
    Request,
    Scheduler,
    SchedulerConfig,
    SequenceOutput,
    SequenceSummary,
    StepInput,
)
from scheduler.beams import BeamParams
from tests.scheduler.fake_device import (
    VOCABULARY,
    FakeDevice,
    FakeSampling,
    PendingFake,
    expected_hypotheses,
    expected_tokens,
)


@dataclass
class Harness:
    """A scheduler on a fake device, driven by hand. `outputs`: all tokens of each sequence; `ends`: their
    summaries."""

    scheduler: Scheduler
    kv: KVCacheManager
    device: FakeDevice
    now: float = 0.0
    outputs: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    ends: dict[tuple[str, int], SequenceSummary] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    in_flight: deque[tuple[StepInput, PendingFake]] = field(default_factory=deque)

    def add(
        self,
        request_id: str,
        prompt: int | list[int],
        max_new_tokens: int,
        *,
        num_outputs: int = 1,
        priority: int = 0,
        sampling: FakeSampling = FakeSampling(),  # noqa: B008  frozen
        beam: BeamParams | None = None,
        max_seconds: float | None = None,
    ) -> Request:
        """prompt: token ids, or how many, different for each request."""
        if isinstance(prompt, int):
            prompt = make_prompt(request_id, prompt)
        if beam is not None:
            stops, num_candidates = beam.stop_token_ids, beam.num_candidates
            sampling = replace(sampling, stop_token_ids=stops, num_candidates=num_candidates)
        request = Request(
            request_id,
            prompt,
            max_new_tokens,
            sampling,
            num_outputs,
            priority,
            self.now,
            max_seconds=max_seconds,
            beam=beam,
        )
        self.scheduler.add(request)
        self.requests[request_id] = request
        for index in range(num_outputs):
            self.outputs[request_id, index] = []
        return request

    def launch(self) -> StepInput | None:
        """Schedule and launch one step; a launch that raises fails it."""
        self.now += 1
        step = self.scheduler.schedule(self.now)
        if step is not None:
            assert 0 < step.num_tokens <= self.scheduler.config.max_num_batched_tokens
            assert step.num_tokens == len(step.decode_rows) + sum(
                len(chunk.token_ids) for chunk in step.chunks
            )
            try:
                self.in_flight.append((step, self.device.launch(step)))
            except RuntimeError as error:
                self.take(self.scheduler.fail(step.step_id, str(error), self.now))
        self.scheduler.check_invariants()
        return step

    def read(self) -> list[SequenceOutput]:
        """Take in the oldest step in flight."""
        self.now += 1
        step, pending = self.in_flight.popleft()
        try:
            outputs = self.scheduler.update(pending.result(), self.now)
        except RuntimeError as error:
            outputs = self.scheduler.fail(step.step_id, str(error), self.now)
        self.take(outputs)
        self.scheduler.check_invariants()
        return outputs

    def step(self) -> StepInput | None:
        """As the loop does: fill the device, read its oldest step. Returns the last step launched."""
        launched = None
        while len(self.in_flight) < self.device.max_steps_in_flight and (step := self.launch()):
            launched = step
        if self.in_flight:
            self.read()
        self.take(self.scheduler.take_outputs())
        return launched

    def drain(self, max_num_steps: int = 10_000) -> None:
        while self.scheduler.has_work or self.in_flight:
            self.step()
            max_num_steps -= 1
            assert max_num_steps, "no end in sight"

    def take(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            key = (output.request_id, output.output_index)
            assert key not in self.ends, "an output after the last"
            self.outputs[key] += output.token_ids
            if output.summary is not None:
                assert output.summary.num_generated_tokens == len(self.outputs[key])
                self.ends[key] = output.summary

    def expected(self, request_id: str, output_index: int = 0) -> list[int]:
        request, groups = self.requests[request_id], self.device.config.groups
        if request.beam is None:
            return expected_tokens(request, output_index, groups)
        found = expected_hypotheses(request, groups)
        return list(found[output_index].token_ids) if output_index < len(found) else []

    def stops_of(self, request_id: str) -> tuple[int, ...]:
        sampling = self.requests[request_id].sampling
        assert isinstance(sampling, FakeSampling)
        return sampling.stop_token_ids

    def check_all_done(self) -> None:
        """Every sequence has ended, with just the tokens it would have generated alone; the pool is full
        again."""
        assert self.ends.keys() == self.outputs.keys()
        for (request_id, output_index), summary in self.ends.items():
            if (
                self.requests[request_id].beam is not None
                and self.requests[request_id].max_seconds is not None
            ):
                continue  # what a search has found by some time need not be among the best in the end
            tokens, expected = self.outputs[request_id, output_index], self.expected(request_id, output_index)
            ended_by_device = summary.finish_reason is FinishReason.LENGTH or (
                summary.finish_reason is FinishReason.STOP
                and tokens
                and tokens[-1] in self.stops_of(request_id)
            )
            assert tokens == (expected if ended_by_device else expected[: len(tokens)]), (
                request_id,
                output_index,
            )
        assert self.kv.num_free_blocks == self.kv.num_blocks
        assert not self.scheduler.has_work
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_steps_in_flight) == (0, 0, 0)
        assert sum(stats.num_finished.values()) == len(self.ends)
        assert stats.num_generated_tokens == sum(map(len, self.outputs.values()))


def make_prompt(name: str, num_tokens: int) -> list[int]:
    """Token ids, different for each name."""
    return [crc32(f"{name} {index}".encode()) % VOCABULARY for index in range(num_tokens)]


MakeHarness = Callable[..., Harness]


@pytest.fixture
def make_harness() -> MakeHarness:
    return new_harness


def new_harness(
    num_blocks: int = 64,
    *,
    block_size: int = 4,
    windows: tuple[int | None, ...] = (None,),
    prefix_caching: bool = True,
    max_num_seqs: int = 8,
    budget: int = 16,
    max_model_len: int = 256,
    policy: str = "fcfs",
    in_flight: int = 1,
) -> Harness:
    groups = tuple(LayerGroup((index,), window) for index, window in enumerate(windows))
    config = KVCacheConfig(num_blocks, block_size, groups, prefix_caching)
    kv = KVCacheManager(config)
    scheduler = Scheduler(SchedulerConfig(max_num_seqs, budget, max_model_len, policy), kv)
    return Harness(scheduler, kv, FakeDevice(config, in_flight))
