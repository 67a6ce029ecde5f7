"""Between the scheduler's loop, which runs steps, and whoever reads what they generate.

Four kinds of threads, and nothing but queues between them:

    event loop   the caller's: `generate`, mailboxes, gRPC. Never computes, never waits for a step.
    tokenize     a small pool: prompts to token ids, validation (intake.py).
    grammar      another one: grammars of guided requests, which may take seconds to compile.
    engine       the StepLoop, on an event loop of its own, which a step may block (engine_thread.py).
    outputs      ids to text, stop strings, for all sequences of a step at once (output_processor.py).

The life of a request:

    generate ── admitted ──> tokenize ── Request ──> engine ── SequenceOutputs ──> outputs
       ^     or refused                                 ^                             │ │
       │                                                └─── a stop string: finish ───┘ │
       └── mailbox <── Handoff: one wake-up of the event loop for all that has queued up ┘

The engine hands over what a step sampled and goes on; it waits for nobody. A reader that is slow finds its
deltas merged (mailbox.py). An output ends for its reader when the scheduler has ended it and taken its blocks
back: by itself, because of a stop string, or because the request was aborted, in whatever state it is. A
request holds its slot and its id until its reader has left as well, so what all readers together have not
read is bounded.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from engine.errors import (
    ConfigError,
    InflightError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from engine.sampling.custom.registry import Registry
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.grammar import Grammar
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import SamplingParams
from engine.serving.engine_thread import EngineThread
from engine.serving.handoff import Handoff
from engine.serving.intake import Asked, Intake
from engine.serving.metrics import Compilation, Interruption, Metrics
from engine.serving.output_processor import Delivery, EngineEnd, OutputProcessor
from engine.serving.request_outputs import RequestOutputs
from engine.serving.request_report import RequestObserver, Unread
from engine.serving.streams import Stream, Streams
from engine.serving.types import EngineLoad, EngineState, ModelInfo, OutputDelta, OutputOptions
from engine.serving.watchdog import Watchdog
from engine.text.tokenizer import Tokenizer
from kvcache.manager import KVCacheManager
from scheduler.loop import StepLoop, describe
from scheduler.request import FinishReason
from scheduler.scheduler import Scheduler
from scheduler.step import Runner

T = TypeVar("T")

_TEXT = OutputOptions()
_NUM_TOKENIZER_THREADS = 2
_NUM_GRAMMAR_THREADS = 4  # as many as the compiler has processes
_SECONDS_TO_STOP = 10.0  # for the running step


class AsyncEngine:
    """Continuous batching for any number of concurrent callers on one event loop.

        async with AsyncEngine(scheduler, kv, runner, tokenizer, model_info) as engine:
            params = SamplingParams(max_new_tokens=20)
            async for delta in engine.generate("some-id", "7 8 9 10", params):
                print(delta.text, end="")

    All methods are called on that event loop, except load(), which any thread may call.

    model_info.max_model_len is cut to the longest sequence that the KV cache can hold; what results is
    `model_info`.
    step_timeout: seconds without a finished step, with work to do, after which the engine counts as dead.
    registry: the processors and criteria that the runner has, too; None: none at all.
    compiler: of grammars; closed at the end. None: guided requests are refused.
    clock: seconds. sleep: how the watchdog waits; tests bring their own.
    Raises ConfigError if the KV cache cannot hold even two tokens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        kv: KVCacheManager,
        runner: Runner,
        tokenizer: Tokenizer,
        model_info: ModelInfo,
        *,
        registry: Registry | None = None,
        compiler: GrammarCompiler | None = None,
        step_timeout: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.model_info = replace(model_info, max_model_len=_longest_sequence(scheduler, kv, model_info))
        self.metrics = Metrics(scheduler.stats, runner, self.model_info.max_model_len)
        self.state = EngineState.SERVING
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._clock = clock
        self._intake = Intake(tokenizer, self.model_info, registry)
        self._compiler = compiler
        self._streams = Streams(model_info.max_num_seqs + model_info.max_num_queued, self.metrics, clock)
        self._pool = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._grammar_pool = ThreadPoolExecutor(_NUM_GRAMMAR_THREADS, thread_name_prefix="grammar")
        self._handoff: Handoff[list[Delivery] | EngineEnd] = Handoff(self._receive)
        self._processor = OutputProcessor(self._handoff.put, self._ask_to_end, self.metrics, clock)
        step_loop = StepLoop(
            scheduler, runner, self._processor.put, on_step=self.metrics.steps.observe, clock=clock
        )
        self._engine = EngineThread(step_loop, self._processor.put, self._processor.end, clock)
        self._watchdog = Watchdog(step_loop, timeout=step_timeout, clock=clock, sleep=sleep)
        self._watching: asyncio.Task[None] | None = None
        self._dead = asyncio.Event()
        self._reason = ""

    def set_observers(self, *observers: RequestObserver) -> None:
        """Who is told how each request went, on the event loop: by default a RequestLog. Before `start`."""
        self._streams.observers = observers

    # Life

    async def start(self) -> None:
        self._handoff.open()
        self._processor.start()
        self._engine.start()
        self._watching = asyncio.create_task(self._watch())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def wait_dead(self) -> str:
        """Returns, with the reason, once no further step will run: the engine died, hangs, or was stopped."""
        await self._dead.wait()
        return self._reason

    async def drain(self, grace: float) -> None:
        """Take no new requests. Let those that run end, and their readers read the end, for `grace` seconds;
        then abort the rest, and return when all have ended."""
        if self.state is EngineState.SERVING:
            self.state = EngineState.DRAINING
        try:
            async with asyncio.timeout(grace):
                await self._streams.idle.wait()
        except TimeoutError:
            if left := self._streams.open():
                for stream in left:
                    self._abort(stream, FinishReason.ABORT, Interruption.SHUTDOWN)
                await asyncio.wait([stream.ended for stream in left])

    async def stop(self) -> None:
        """End everything: what still runs ends with ABORT after the running step. The engine is DEAD then."""
        if self._watching is None:  # never started
            return
        if self.state is EngineState.SERVING:
            self.state = EngineState.DRAINING
        for stream in self._streams.open():
            if not stream.is_submitted:
                self._streams.fail(stream, UnavailableError("the engine is stopping"), self._clock())
        self._engine.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS_TO_STOP):
                await self._dead.wait()
        self._die(f"a step hangs: it did not end in {_SECONDS_TO_STOP:g} s")
        self._processor.end(None)  # if the engine hangs, it has not told
        self._watching.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grammar_pool.shutdown(wait=False, cancel_futures=True)
        if self._compiler is not None:
            self._compiler.close()

    # Requests

    async def generate(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        output: OutputOptions = _TEXT,
        left_because: Callable[[], FinishReason] = lambda: FinishReason.ABORT,
        trace_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> AsyncGenerator[OutputDelta, None]:
        """Iterate over what is generated from a prompt (text, or token ids taken as they are).

        Nothing happens before the first step of the iteration. Closing it (aclose(), cancelling the task that
        iterates) aborts the request: use contextlib.aclosing() where the iteration may be left early, and
        left_because to tell why then. trace_headers: W3C trace context, asked for when a trace is written.
        Each output ends with a delta that has a finish; usage and timings come with the last delta of all.

        Raises InvalidArgumentError (naming field, value, limit), AlreadyExistsError, OverloadedError (all
        slots
        are taken: at once, before any work), UnavailableError (draining, or dead, also while it runs),
        StepFailedError (while it runs).
        """
        asked = Asked(request_id, prompt, params, priority, output, self._clock(), trace_headers)
        stream = self._admit(asked)
        try:
            await self._submit(stream)
            async for delta in stream.mailbox:
                yield delta
        finally:
            self._leave(stream, left_because)

    def refuse(self, request: Unread, error: Exception) -> None:
        """Count, and tell of, a request that is refused without a `generate`, for it cannot be read."""
        self._streams.refuse_unread(request, error)

    def leave(self, request: Unread, reason: FinishReason) -> None:
        """The same for one whose client has left before its `generate`."""
        self._streams.leave_unread(request, reason)

    async def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request, whatever its state, before the next step: its reader gets what there is, then the
        end.

        Does not wait for that. Raises NotFoundError if no such request runs.
        """
        stream = self._streams.find(request_id)
        if stream is None:
            raise NotFoundError(f"no request with id {request_id!r} is running")
        self._abort(stream, reason)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return await self._in_pool(partial(self._tokenizer.encode, text, add_special_tokens))

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return await self._in_pool(partial(self._tokenizer.decode, token_ids, skip_special_tokens))

    def load(self) -> EngineLoad:
        """A snapshot, at no cost. Any thread; during a step its numbers may be of different moments."""
        stats = self._scheduler.stats()
        num_waiting = max(0, stats.num_waiting)  # which is a difference
        return EngineLoad(stats.num_running, num_waiting, stats.num_blocks, stats.num_free_blocks)

    # Inside: from the caller to the engine

    def _admit(self, asked: Asked) -> Stream:
        try:
            if self.state is not EngineState.SERVING:
                raise UnavailableError(f"the engine takes no requests: it is {self._condition()}")
            self._intake.check(asked)
            return self._streams.admit(asked)
        except InflightError as error:
            self._streams.count_refusal(asked, error)
            raise

    async def _submit(self, stream: Stream) -> None:
        """Returns when the engine has the request, or it has ended before."""
        try:
            outputs = await self._prepare(stream)
            if outputs is None:
                return
            self._streams.charge(stream, len(outputs.request.prompt_token_ids))
        except InflightError as error:
            self._streams.refuse(stream, error)
            raise
        for delta in outputs.echo():
            stream.mailbox.put(delta)
        stream.is_submitted = True
        self._processor.add(outputs)
        # Before the engine has it: from then on it may be running already.
        self.metrics.requests.observe_prepared(self._clock() - stream.asked.arrival_time)
        self._engine.submit(outputs.request)

    async def _prepare(self, stream: Stream) -> RequestOutputs | None:
        """None: the request was aborted, or the engine died, in the meantime."""
        asked = stream.asked
        outputs: RequestOutputs | None
        if asked.needs_tokenizer:
            work = self._in_pool(partial(self._intake.prepare, asked))
            outputs = await self._unless_ended(stream, work)
        else:
            outputs = self._intake.prepare(asked)
        if outputs is None or asked.params.guided is None:
            return outputs
        grammar = await self._compiled(stream, asked.params.guided)
        if grammar is None:
            return None
        outputs.guide(grammar)
        return outputs

    async def _compiled(self, stream: Stream, spec: GuidedSpec) -> Grammar | None:
        """None: the request has ended in the meantime."""
        started, how = self._clock(), Compilation.ABANDONED
        try:
            compiling = self._in_pool(partial(self._compile, spec), self._grammar_pool)
            grammar = await self._unless_ended(stream, compiling)
            how = how if grammar is None else Compilation.COMPILED
        except InflightError as error:
            is_refused = isinstance(error, InvalidArgumentError)
            how = Compilation.REFUSED if is_refused else Compilation.UNAVAILABLE
            raise
        finally:
            self.metrics.guided.observe(how, self._clock() - started)
        return grammar

    async def _unless_ended(self, stream: Stream, work: asyncio.Future[T]) -> T | None:
        """None: the request has ended in the meantime."""
        stream.preparing = work
        await asyncio.wait([work])  # unlike awaiting it, tells its being cancelled from ours
        return None if stream.ended.done() else work.result()

    def _compile(self, spec: GuidedSpec) -> Grammar:
        if self._compiler is None:
            raise InvalidArgumentError("guided", spec.kind, "this engine has no compiler of grammars")
        return self._compiler.compile(spec)

    def _abort(
        self, stream: Stream, reason: FinishReason, why: Interruption = Interruption.ABORT_CALL
    ) -> None:
        stream.interruption = stream.interruption or why
        if stream.is_submitted:
            self._engine.abort(stream.asked.request_id, reason)
        else:
            self._streams.end_early(stream, reason, self._clock())

    def _leave(self, stream: Stream, because: Callable[[], FinishReason]) -> None:
        self._streams.leave(stream)
        if not stream.ended.done():
            self._abort(stream, because(), Interruption.CLIENT_LEFT)

    def _in_pool(self, function: Callable[[], T], pool: Executor | None = None) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(pool or self._pool, function)

    def _condition(self) -> str:
        return f"{self.state.value}: {self._reason}" if self._reason else self.state.value

    # Inside: from the engine to the caller

    def _ask_to_end(self, request_id: str, output_index: int | None, reason: FinishReason) -> None:
        """Called by the output thread."""
        if output_index is None:
            self._engine.abort(request_id, reason)
        else:
            self._engine.finish(request_id, output_index, reason)

    def _receive(self, item: list[Delivery] | EngineEnd) -> None:
        if isinstance(item, EngineEnd):
            self._die("stopped" if item.error is None else describe(item.error))
            return
        for request_id, delta, end in item:
            stream = self._streams.find(request_id)
            if stream is None:  # the engine was taken for dead, and told its reader
                continue
            if delta is not None:
                stream.mailbox.put(delta)
            if end is not None:
                self._streams.end(stream, end)

    async def _watch(self) -> None:
        seconds = await self._watchdog.wait_until_hung()
        self._die(f"no step has ended for {seconds:.0f} s")

    def _die(self, reason: str) -> None:
        if self.state is EngineState.DEAD:
            return
        self.state, self._reason = EngineState.DEAD, reason
        for stream in self._streams.open():
            self._streams.fail(stream, UnavailableError(f"the engine is {self._condition()}"), self._clock())
        self._dead.set()


def _longest_sequence(scheduler: Scheduler, kv: KVCacheManager, model_info: ModelInfo) -> int:
    """In tokens. The last one is never an input, so the KV cache holds one less."""
    limits = scheduler.config
    lengths = range(1, min(limits.max_model_len, model_info.max_model_len) + 1)
    longest = bisect_left(lengths, True, key=lambda n: not kv.fits(n - 1, limits.max_num_batched_tokens))
    if longest < 2:
        needed = "there must be room for two tokens, one of them generated"
        raise ConfigError(f"max_model_len {len(lengths)}, {kv.num_blocks} KV blocks: {needed}")
    return longest
