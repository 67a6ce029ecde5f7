"""A whole AsyncEngine, real but for the device."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.serving.async_engine import AsyncEngine
from engine.serving.types import ModelInfo
from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler
from scheduler.step import StepInput
from tests.support.fake_model import EOS, VOCAB_SIZE, FakeRunner, byte_tokenizer

SECONDS_TO_DRAIN = 60.0  # never used up, unless something hangs


@dataclass(frozen=True, slots=True)
class FakeEngine:
    engine: AsyncEngine
    scheduler: Scheduler
    kv: KVCacheManager
    runner: FakeRunner

    def check_is_empty(self) -> None:
        """Nothing runs, and every block is free."""
        assert not self.scheduler.has_work
        self.scheduler.check_invariants()
        assert self.kv.num_free_blocks == self.kv.num_blocks


@dataclass(frozen=True, slots=True)
class FakeEngineOptions:
    """Blocks of 4 tokens."""

    num_blocks: int = 64
    max_model_len: int = 128
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 16
    max_num_queued: int = 64
    policy: str = "fcfs"
    runner: FakeRunner = field(default_factory=FakeRunner)


def fake_engine(options: FakeEngineOptions | None = None, **engine_options: Any) -> FakeEngine:
    """engine_options: AsyncEngine's keywords. Start it inside an event loop."""
    options = options or FakeEngineOptions()
    kv = KVCacheManager(KVCacheConfig(options.num_blocks, block_size=4))
    config = SchedulerConfig(
        options.max_num_seqs, options.max_num_batched_tokens, options.max_model_len, options.policy
    )
    scheduler = Scheduler(config, kv)
    tokenizer = byte_tokenizer()
    model_info = ModelInfo(
        name="fake",
        architecture="FakeForCausalLM",
        vocab_size=VOCAB_SIZE,
        max_model_len=options.max_model_len,
        dtype="float32",
        tokenizer_sha256=tokenizer.sha256,
        eos_token_ids=(EOS,),
        max_prompt_chars=options.max_model_len * 16,
        block_size=4,
        policy=options.policy,
        max_num_seqs=options.max_num_seqs,
        max_num_queued=options.max_num_queued,
    )
    engine = AsyncEngine(scheduler, kv, options.runner, tokenizer, model_info, **engine_options)
    return FakeEngine(engine, scheduler, kv, options.runner)


@asynccontextmanager
async def running_engine(
    options: FakeEngineOptions | None = None, **engine_options: Any
) -> AsyncIterator[FakeEngine]:
    """A started engine. At the end of the block it is drained, and must be empty."""
    fake = fake_engine(options, **engine_options)
    async with fake.engine:
        yield fake
        await fake.engine.drain(SECONDS_TO_DRAIN)
        fake.check_is_empty()


class Gate:
    """Where steps wait: FakeRunner.before_step. Closed at first; each `pass_one` lets one step through."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, step: StepInput) -> None:
        self._arrivals.release()
        if not self._is_open:
            self._permits.acquire()

    async def arrival(self) -> None:
        """Until one more step stands at the gate, or has passed it."""
        await asyncio.to_thread(self._arrivals.acquire)

    def pass_one(self) -> None:
        self._permits.release()

    def open(self) -> None:
        """Let all through from now on."""
        self._is_open = True
        self._permits.release()
