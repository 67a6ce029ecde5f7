"""Runs steps: one CUDA graph for a step that only decodes, eager plans for one with chunks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from engine.attention.kernels import TILE_TOKENS
from engine.nvidia import lost_device
from engine.sampling.kernels import DeviceSampler
from engine.sampling.params import SamplingParams
from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.decoder_pass import DecoderPass, StepTokens
from engine.tensorrt_backend.device_state import DeviceState
from engine.tensorrt_backend.executor import Executor, Fetched, Replayable
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.kernels import FROM_STATE, take_tokens
from engine.tensorrt_backend.packing import MAX_LONE_CHUNK, Words, pack
from engine.tensorrt_backend.step_buffers import StepBuffers
from engine.tensorrt_backend.uploads import Uploads
from kvcache.storage import KVCacheStorage
from scheduler.errors import FatalStepError
from scheduler.step import Chunk, NewRow, PendingStep, StepInput, StepOutput

T = TypeVar("T")
_Guard = Callable[[Callable[[], torch.Tensor]], torch.Tensor]


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
    """

    max_steps_in_flight = 2

    def __init__(
        self,
        state: DeviceState,
        sampler: DeviceSampler,
        storage: KVCacheStorage,
        uploads: Uploads,
        buffers: StepBuffers,
        decoder: DecoderPass,
        routed: RoutedSegments,
        executor: Executor,
    ) -> None:
        self._state, self._sampler, self._storage = state, sampler, storage
        self._uploads, self._buffers, self._decoder = uploads, buffers, decoder
        self._routed, self._executor = routed, executor
        self._graphs: dict[int, Replayable] = {}
        self._decode_rows: tuple[int, ...] = ()  # that the device has, before padding to _decode_bucket
        self._decode_bucket = 0

    # Start

    @torch.inference_mode()
    def capture(self, bucket: int) -> None:
        """Make the graph of a decode bucket. The rows are padding meanwhile, so that nothing changes."""
        self._buffers.decode_rows.fill_(-1)
        self._decode_rows, self._decode_bucket = (), 0
        self._graphs[bucket] = self._executor.capture(lambda: self._enqueue_decode(bucket))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what steps with chunks run, and graphs do not: the shortest, a short and the longest one.

        To be done before anything is served, for it writes to block 0.
        """
        num_groups, _, num_blocks = self._state.block_tables.shape
        row = NewRow(0, 1, 0, 0, ((0,) * num_blocks,) * num_groups, 1, SamplingParams(), 0)
        largest = min(self._routed.tokens.largest, num_blocks * self._storage.block_size)
        for length in {1, min(MAX_LONE_CHUNK + 1, largest), largest}:
            chunk = Chunk(0, 0, (0,) * length, samples=True)
            self.launch(StepInput(0, chunks=(chunk,), new_rows=(row,), num_tokens=length)).result()

    # Steps

    @torch.inference_mode()
    def launch(self, step: StepInput) -> PendingStep:
        """See scheduler.step.Runner."""
        with self._executor.entered():
            return self._guarded(lambda: self._launch(step))

    def _launch(self, step: StepInput) -> PendingStep:
        self._state.update(step)
        self._sampler.set_rows(step.new_rows)
        self._storage.copy_blocks(step.block_copies)
        out = self._mixed(step) if step.chunks else self._decode(step.decode_rows)
        num_samples = len(step.decode_rows) + sum(chunk.samples for chunk in step.chunks)
        return _Pending(step.step_id, self._executor.fetch(out), num_samples, self._guarded)

    def _decode(self, rows: tuple[int, ...]) -> torch.Tensor:
        """[2, bucket], token ids and finish codes."""
        bucket = self._routed.decode.bucket_for(len(rows))
        if rows != self._decode_rows or bucket != self._decode_bucket:
            (uploaded,) = self._uploads.upload((_padded(np.array(rows, dtype=np.int32), bucket, -1),))
            self._buffers.decode_rows[:bucket].copy_(uploaded)
            self._decode_rows, self._decode_bucket = rows, bucket
        self._graphs[bucket].replay()
        return self._buffers.output(bucket)

    def _enqueue_decode(self, bucket: int) -> None:
        buffers, state, segments = self._buffers, self._state, self._routed.segments[bucket]
        rows = buffers.decode_rows[:bucket]
        tokens = StepTokens(rows, buffers.positions[:bucket], buffers.token_ids[:bucket], num_lone=bucket)
        self._take(tokens, all_decode=True)
        logits = self._decoder.logits(segments, self._decoder.layers(segments, tokens))
        self._sampler.sample(logits, rows, state.last_token, buffers.output(bucket))

    def _mixed(self, step: StepInput) -> torch.Tensor:
        """[2, bucket], token ids and finish codes of the rows that sample."""
        routed = self._routed
        packed = pack(
            step, from_state=FROM_STATE, tile_tokens=TILE_TOKENS, max_num_lone=routed.decode.largest
        )
        bucket, num_samples = routed.tokens.bucket_for(len(packed.rows)), len(packed.sample_rows)
        sampled = routed.decode.bucket_for(num_samples) if num_samples else 0
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
        out = self._buffers.output(sampled)
        if num_samples:
            logits = self._decoder.sampled_logits(routed.segments[sampled], residual, index)
            self._sampler.sample(logits, sample_rows, self._state.last_token, out)
        return out

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

    def __init__(self, step_id: int, out: Fetched, num_samples: int, guarded: _Guard) -> None:
        """out: token ids and finish codes, int32 [2, at least num_samples]."""
        self._step_id = step_id
        self._out = out
        self._num_samples = num_samples
        self._guarded = guarded

    def result(self) -> StepOutput:
        """See scheduler.step.PendingStep."""
        out = self._guarded(self._out.wait)
        token_ids, finishes = out[:, : self._num_samples].tolist()
        return StepOutput(self._step_id, token_ids, finishes)


def _padded(words: Words, size: int, value: int) -> Words:
    return np.pad(words, (0, size - len(words)), constant_values=value)
