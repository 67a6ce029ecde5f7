"""Requests through the real scheduler and KV cache manager, two steps in flight, timed step by step."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from benchmarks.gpu_engine import Engine
from kvcache.manager import KVCacheManager
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.stats import StepStats
from scheduler.step import PendingStep, StepInput


@dataclass(slots=True)
class Served:
    """seconds: of all requests, from the first step planned. events: on the device's stream, right before
    and after what each step enqueues; in the order of `steps`."""

    seconds: float = 0.0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    steps: list[StepStats] = field(default_factory=list)
    events: list[tuple[torch.Event, torch.Event]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_output_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class _Launched:
    step: StepInput
    pending: PendingStep
    schedule_seconds: float
    launch_seconds: float


class Server:
    """What scheduler.loop.StepLoop does, without asyncio. A new one has an empty cache."""

    def __init__(
        self, engine: Engine, max_num_seqs: int, max_num_batched_tokens: int, *, prefix_caching: bool = False
    ) -> None:
        self._engine = engine
        self._config = SchedulerConfig(
            max_num_seqs, max_num_batched_tokens, engine.model.config.max_model_len
        )
        self._kv = KVCacheManager(replace(engine.built.cache, enable_prefix_caching=prefix_caching))
        self._scheduler = Scheduler(self._config, self._kv)
        self._in_flight: deque[_Launched] = deque()

    def serve(self, requests: Iterable[Request], *, with_events: bool = False) -> Served:
        """All of them, given at once."""
        served = Served()
        for request in requests:
            self._scheduler.add(request)
        started = time.perf_counter()
        while self._scheduler.has_work:
            while len(self._in_flight) < self._engine.runner.max_steps_in_flight:
                if not self._launch(served, with_events):
                    break
            self._read(served)
        served.seconds = time.perf_counter() - started
        served.num_preemptions = self._scheduler.stats().num_preemptions
        while self._in_flight:
            self._in_flight.popleft().pending.result()
        return served

    def _launch(self, served: Served, with_events: bool) -> bool:
        started = time.perf_counter()
        step = self._scheduler.schedule(started)
        if step is None:
            return False
        scheduled = time.perf_counter()
        before = self._event() if with_events else None
        pending = self._engine.runner.launch(step)
        if before is not None:
            served.events.append((before, self._event()))
        launched = time.perf_counter()
        self._in_flight.append(_Launched(step, pending, scheduled - started, launched - scheduled))
        return True

    def _read(self, served: Served) -> None:
        launched = self._in_flight.popleft()
        started = time.perf_counter()
        output = launched.pending.result()
        read = time.perf_counter()
        for sequence in self._scheduler.update(output, read):
            served.num_output_tokens += len(sequence.token_ids)
        num_decode_rows = len(launched.step.decode_rows)
        served.steps.append(
            StepStats(
                step_id=launched.step.step_id,
                num_decode_rows=num_decode_rows,
                num_chunk_tokens=launched.step.num_tokens - num_decode_rows,
                schedule_seconds=launched.schedule_seconds,
                launch_seconds=launched.launch_seconds,
                wait_seconds=read - started,
                update_seconds=time.perf_counter() - read,
            )
        )

    def _event(self) -> torch.Event:
        event = torch.Event(self._engine.model.device, enable_timing=True)
        event.record(self._engine.stream)
        return event
