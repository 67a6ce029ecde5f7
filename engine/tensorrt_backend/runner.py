"""Runs steps: one CUDA graph for a step that only decodes, eager plans for one with chunks."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from engine.attention.kernels import TILE_TOKENS
from engine.nvidia import lost_device
from engine.sampling.answer import Scores
from engine.sampling.params import SamplingParams
from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.decoder_pass import DecoderPass, StepTokens
from engine.tensorrt_backend.device_state import DeviceState
from engine.tensorrt_backend.executor import Executor, Replayable
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.kernels import FROM_STATE, take_tokens
from engine.tensorrt_backend.packing import MAX_LONE_CHUNK, PackedStep, Words, pack
from engine.tensorrt_backend.pending import PendingSamples
from engine.tensorrt_backend.step_buffers import StepBuffers
from engine.tensorrt_backend.step_sampling import Part, SamplingPlan, StepSampling
from engine.tensorrt_backend.uploads import Uploads
from kvcache.storage import KVCacheStorage
from scheduler.errors import FatalStepError
from scheduler.step import Chunk, NewRow, PendingStep, StepInput, StepOutput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoutedSegments:
    """The segments of every bucket, and which bucket takes how many tokens.

    decode: buckets that also have a last segment. tokens: all buckets, without the last segment.
    """

    segments: Mapping[int, Segments]
    decode: Router
    tokens: Router


class TensorRTRunner:
    """One model on one GPU, and the state of its rows: scheduler.step.Runner.

    launch() enqueues on the executor and never waits for the device. What is known there (positions
    and last tokens of rows that decode, block tables, sampling parameters) is not sent again.

    A step with grammars is launched like any other, but what its rows may sample depends on the last step's
    tokens. If these have not been read yet, the model runs meanwhile, and sampling is enqueued by whoever
    reads them.
    """

    max_steps_in_flight = 2

    def __init__(
        self,
        state: DeviceState,
        sampling: StepSampling,
        storage: KVCacheStorage,
        uploads: Uploads,
        buffers: StepBuffers,
        decoder: DecoderPass,
        routed: RoutedSegments,
        executor: Executor,
    ) -> None:
        self.num_ungraphed_steps = 0  # that decode, and were sampled outside of their graph
        self.num_padding_tokens = 0  # computed only to fill buckets
        self._state, self._sampling, self._storage = state, sampling, storage
        self._uploads, self._buffers, self._decoder = uploads, buffers, decoder
        self._routed, self._executor = routed, executor
        self._graphs: dict[tuple[int, Part], Replayable] = {}
        self._decode_rows: tuple[int, ...] = ()  # that the device has, before padding to _decode_bucket
        self._decode_bucket = 0
        self._unread: deque[_Pending] = deque()

    # Start

    @torch.inference_mode()
    def capture(self, bucket: int) -> None:
        """Make the graphs of a decode bucket. The rows are padding meanwhile, so that nothing changes."""
        self._buffers.decode_rows.fill_(-1)
        self._decode_rows, self._decode_bucket = (), 0
        for part in Part:
            self._graphs[bucket, part] = self._executor.capture(partial(self._enqueue_decode, bucket, part))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what steps with chunks run, and graphs do not: the shortest, a short and the longest one (a
        chunk of one token is decoded).

        To be done before anything is served, for it writes to block 0.
        """
        num_groups, _, num_blocks = self._state.block_tables.shape
        largest = min(self._routed.tokens.largest, num_blocks * self._storage.block_size)
        for params in (SamplingParams(), SamplingParams(repetition_penalty=2.0, prompt_logprobs=1)):
            row = NewRow(0, 1, 0, 0, ((0,) * num_blocks,) * num_groups, 1, params, 0, (0,))
            for length in sorted({2, min(MAX_LONE_CHUNK + 1, largest), largest}):
                token_ids = (0,) * length
                scored = token_ids if params.prompt_logprobs else ()
                chunk = Chunk(0, 0, token_ids, samples=True, next_token_ids=scored)
                self.launch(StepInput(0, chunks=(chunk,), new_rows=(row,), num_tokens=length)).result()
        self.num_padding_tokens = 0

    # Steps

    @torch.inference_mode()
    def launch(self, step: StepInput) -> PendingStep:
        """See scheduler.step.Runner."""
        with self._executor.entered():
            return self._guarded(lambda: self._launch(step))

    def _launch(self, step: StepInput) -> "_Pending":
        decodes = all(_is_decode(chunk) for chunk in step.chunks)
        self._state.update(step, decodes=decodes)
        self._sampling.set_rows(step.new_rows)
        self._storage.copy_blocks(step.block_copies)
        sampling = (chunk.row for chunk in step.chunks if chunk.samples)
        plan = self._sampling.plan((*step.decode_rows, *sampling))
        samples = self._decode(plan) if decodes else self._mixed(step, plan)
        pending = _Pending(step.step_id, samples, self._read)
        if not (plan.guided and self._unread):
            pending.enqueue()
        self._unread.append(pending)
        return pending

    @torch.inference_mode()
    def _read(self, pending: "_Pending") -> StepOutput:
        """Its answer. Then the next step has what it may have waited for."""
        assert self._unread[0] is pending, "steps are read in the order of their launch"
        with self._executor.entered():
            try:
                return self._guarded(pending.read)
            finally:
                self._unread.popleft()
                if self._unread:
                    self._unread[0].enqueue()

    def _decode(self, plan: SamplingPlan) -> PendingSamples:
        bucket = self._routed.decode.bucket_for(len(plan.rows))
        if plan.rows != self._decode_rows or bucket != self._decode_bucket:
            rows = _padded(np.array(plan.rows, dtype=np.int32), bucket, -1)
            self._buffers.decode_rows[:bucket].copy_(self._uploads.upload((rows,))[0])
            self._decode_rows, self._decode_bucket = plan.rows, bucket
        self.num_padding_tokens += bucket - len(plan.rows)
        self._graphs[bucket, plan.part].replay()
        self.num_ungraphed_steps += plan.part is Part.MODEL
        return self._samples(plan, self._buffers.decode_rows[:bucket], is_done=plan.part is not Part.MODEL)

    def _enqueue_decode(self, bucket: int, part: Part) -> None:
        buffers, segments = self._buffers, self._routed.segments[bucket]
        rows = buffers.decode_rows[:bucket]
        tokens = StepTokens(rows, buffers.positions[:bucket], buffers.token_ids[:bucket], num_lone=bucket)
        self._take(tokens, all_decode=True)
        logits = self._decoder.logits(segments, self._decoder.layers(segments, tokens))
        self._sampling.capture(part, logits, rows)

    def _mixed(self, step: StepInput, plan: SamplingPlan) -> PendingSamples:
        routed = self._routed
        packed = pack(
            step, from_state=FROM_STATE, tile_tokens=TILE_TOKENS, max_num_lone=routed.decode.largest
        )
        bucket, num_samples = routed.tokens.bucket_for(len(packed.rows)), len(packed.sample_rows)
        sampled = routed.decode.bucket_for(num_samples) if num_samples else 0
        self.num_padding_tokens += bucket - len(packed.rows)
        rows, positions, token_ids, tiles, sample_rows, index = self._uploads.upload(
            (
                _padded(packed.rows, bucket, -1),
                _padded(packed.positions, bucket, -1),
                _padded(packed.token_ids, bucket, 0),
                packed.tiles,
                _padded(packed.sample_rows, sampled, -1),
                _padded(packed.sample_index, sampled, 0),
            )
        )
        tokens = StepTokens(rows, positions, token_ids, packed.num_lone, tiles)
        self._take(tokens, all_decode=False)
        residual = self._decoder.layers(routed.segments[bucket], tokens)
        scores = {index: self._score(step, packed, index, residual) for index in packed.scored}
        if num_samples:
            self._decoder.sampled_logits(routed.segments[sampled], residual, index)
        return self._samples(plan, sample_rows, is_done=not num_samples, scores=scores)

    def _samples(
        self,
        plan: SamplingPlan,
        rows: torch.Tensor,
        *,
        is_done: bool,
        scores: Mapping[int, Scores] | None = None,
    ) -> PendingSamples:
        return PendingSamples(
            plan, self._sampling, self._buffers, self._executor, rows, is_done, scores or {}
        )

    def _score(self, step: StepInput, packed: PackedStep, chunk: int, residual: torch.Tensor) -> Scores:
        """Log-probabilities of a chunk's next tokens, a slice at a time: there is room for few logits."""
        size, num_reported = self._routed.decode.largest, self._sampling.num_scored(step.chunks[chunk].row)
        index, targets = packed.scored[chunk], np.array(step.chunks[chunk].next_token_ids, dtype=np.int32)
        parts = []
        for start in range(0, len(index), size):
            part = slice(start, start + size)
            num_tokens = len(index[part])
            bucket = self._routed.decode.bucket_for(num_tokens)
            uploaded = self._uploads.upload(
                (_padded(index[part], bucket, 0), _padded(targets[part], bucket, 0))
            )
            logits = self._decoder.sampled_logits(self._routed.segments[bucket], residual, uploaded[0])
            report = self._buffers.report[:bucket]
            self._sampling.score(logits, uploaded[1], num_reported, report)
            parts.append(self._executor.fetch(report[:num_tokens]))
        return Scores(num_reported, parts)

    def _take(self, tokens: StepTokens, *, all_decode: bool) -> None:
        state = self._state
        take_tokens(
            tokens.rows,
            tokens.positions,
            tokens.token_ids,
            state.num_computed,
            state.last_token,
            all_decode=all_decode,
        )

    def _guarded(self, work: Callable[[], T]) -> T:
        """Whatever goes wrong: is it the end of this step, or of the device?"""
        try:
            return work()
        except Exception as error:
            try:
                self._executor.synchronize()
            except torch.AcceleratorError as lost:
                raise FatalStepError(lost_device(lost)) from error
            raise


class _Pending:
    """A launched step: scheduler.step.PendingStep."""

    def __init__(
        self, step_id: int, samples: PendingSamples, read: Callable[["_Pending"], StepOutput]
    ) -> None:
        self._step_id = step_id
        self._samples = samples
        self._read = read
        self._error: Exception | None = None

    def enqueue(self) -> None:
        """Sampling, once. What goes wrong is told by `read`."""
        try:
            self._samples.enqueue()
        except Exception as error:
            self._error = error

    def read(self) -> StepOutput:
        if self._error is not None:
            raise self._error
        return self._samples.read(self._step_id)

    def result(self) -> StepOutput:
        """See scheduler.step.PendingStep."""
        return self._read(self)


def _is_decode(chunk: Chunk) -> bool:
    """A known token, such as the one that a beam search has chosen, is decoded like one that was sampled."""
    return chunk.samples and len(chunk.token_ids) == 1 and not chunk.next_token_ids


def _padded(words: Words, size: int, value: int) -> Words:
    return np.pad(words, (0, size - len(words)), constant_values=value)
