"""Runs steps: batch state, forward pass, sampling. Implements scheduler.step.Runner."""

import numpy as np
import torch

from engine.attention.lone import can_sample
from engine.attention.plan import AttentionShape, Planner
from engine.model.config import ModelConfig
from engine.model.weights import ModelWeights
from engine.nvidia import lost_device
from engine.sampling.sampler import Sampler
from engine.torch_backend.batch_state import BatchState
from engine.torch_backend.model import TorchModel
from engine.torch_backend.packing import PackedStep, pack
from kvcache.block_table import num_blocks_for
from kvcache.config import KVCacheConfig
from kvcache.storage import KVCacheStorage, to_device
from scheduler.errors import FatalStepError
from scheduler.step import PendingStep, StepInput, StepOutput

# Chunks up to this long attend token by token, where that reads the pool in place: measured on a CPU.
_MAX_LONE_CHUNK = 16


class TorchRunner:
    """One model on one device, and the state of its rows.

    On a CPU a step has been computed when launch() returns. On CUDA launch() enqueues it on the current
    stream and never waits: state, sampled tokens and verdicts stay on the device, and one copy to pinned
    memory follows.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights[torch.Tensor],
        cache: KVCacheConfig,
        max_num_seqs: int,
    ) -> None:
        """config.max_model_len bounds every sequence. The pool takes the weights' device and dtype."""
        self._device = weights.embedding.device
        dtype = weights.embedding.dtype
        max_num_blocks = num_blocks_for(config.max_model_len, cache.block_size)
        self._state = BatchState(len(cache.groups), max_num_seqs, max_num_blocks, self._device)
        self._sampler = Sampler(
            max_num_seqs, config.vocab_size, config.max_model_len, config.eos_token_ids, self._device
        )
        self._storage = KVCacheStorage(cache, config.num_kv_heads, config.head_dim, dtype, self._device)
        self._model = TorchModel(config, weights, self._storage, cache.groups)
        shape = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, cache.num_blocks, cache.block_size
        )
        self._planners = [Planner(shape, group.window, self._device, dtype) for group in cache.groups]
        self._max_lone_chunk = _MAX_LONE_CHUNK if can_sample(self._device, dtype) else 1

    @property
    def max_steps_in_flight(self) -> int:
        """See scheduler.step.Runner: 1 on a CPU, 2 on CUDA."""
        return 1 if self._device.type == "cpu" else 2

    @torch.inference_mode()
    def launch(self, step: StepInput) -> PendingStep:
        """See scheduler.step.Runner."""
        try:
            self._state.update(step)
            self._sampler.set_rows(step.new_rows)
            self._storage.copy_blocks(step.block_copies)
            packed = pack(step, self._state.num_computed, self._max_lone_chunk)
            assert len(packed.token_ids) == step.num_tokens
            sampled = self._compute(packed)
        except torch.AcceleratorError as error:
            raise FatalStepError(lost_device(error)) from error
        self._advance(step)
        return _Pending(step.step_id, sampled)

    def _compute(self, packed: PackedStep) -> torch.Tensor:
        """Token ids and finish codes of the rows that sample, int64 [2, n]."""
        layout, state = packed.layout, self._state
        token_ids, rows, positions, sample_index, sample_rows = self._to_device(packed)
        decodes, decode_rows = sample_index[: packed.num_decodes], sample_rows[: packed.num_decodes]
        token_ids.index_copy_(0, decodes, state.last_token.index_select(0, decode_rows))
        plans = [
            planner.plan(layout, rows, positions, table)
            for planner, table in zip(self._planners, state.block_tables, strict=True)
        ]
        logits = self._model(token_ids, positions, plans, sample_index)
        sampled, finishes = self._sampler.sample(logits, sample_rows, packed.sample_rows.tolist())
        state.last_token.index_copy_(0, sample_rows, sampled)
        return torch.stack((sampled, finishes.long()))

    def _to_device(self, packed: PackedStep) -> tuple[torch.Tensor, ...]:
        """token_ids, rows, positions [N], sample_index, sample_rows [n], by one copy."""
        layout = packed.layout
        parts = (packed.token_ids, layout.rows, layout.positions, packed.sample_index, packed.sample_rows)
        packed_parts = to_device(torch.from_numpy(np.concatenate(parts)), self._device)
        return torch.split_with_sizes(packed_parts, [len(part) for part in parts])

    def _advance(self, step: StepInput) -> None:
        num_computed = self._state.num_computed
        num_computed[list(step.decode_rows)] += 1
        for chunk in step.chunks:
            num_computed[chunk.row] = chunk.start + len(chunk.token_ids)


class _Pending:
    """A launched step: scheduler.step.PendingStep."""

    def __init__(self, step_id: int, sampled: torch.Tensor) -> None:
        """sampled: token ids and finish codes, int64 [2, n], on the device."""
        self._step_id = step_id
        self._event: torch.Event | None = None
        self._sampled = sampled
        if sampled.is_cuda:
            self._sampled = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
            self._sampled.copy_(sampled, non_blocking=True)
            self._event = torch.Event(sampled.device)
            self._event.record()

    def result(self) -> StepOutput:
        """See scheduler.step.PendingStep."""
        if self._event is not None:
            try:
                self._event.synchronize()
            except torch.AcceleratorError as error:
                raise FatalStepError(lost_device(error)) from error
        token_ids, finishes = self._sampled.tolist()
        return StepOutput(self._step_id, token_ids, finishes)
