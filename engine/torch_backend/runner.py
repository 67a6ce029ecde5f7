"""Runs steps: batch state, forward pass, sampling. Implements scheduler.step.Runner."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from engine.attention.layout import IntArray
from engine.attention.lone import can_sample
from engine.attention.plan import AttentionShape, Planner
from engine.fetched import HostCopy
from engine.model.config import ModelConfig
from engine.model.weights import ModelWeights
from engine.nvidia import lost_device
from engine.sampling.answer import Answer, Scores
from engine.sampling.custom import CustomRows, Registry
from engine.sampling.guides import GuidedRows, GuidedSample, write_masks
from engine.sampling.logprobs import score
from engine.sampling.rows import RowState
from engine.sampling.sampler import Sampled, Sampler
from engine.torch_backend.batch_state import BatchState
from engine.torch_backend.model import LastLayer, TorchModel
from engine.torch_backend.packing import PackedStep, pack
from kvcache.block_table import num_blocks_for
from kvcache.config import KVCacheConfig
from kvcache.storage import KVCacheStorage, to_device
from scheduler.errors import FatalStepError
from scheduler.step import PendingStep, StepInput, StepOutput

# Chunks up to this long attend token by token, where that reads the pool in place: measured on a CPU.
_MAX_LONE_CHUNK = 16
_SCORED_SLICE = 64  # tokens of a prompt whose logits are in memory at once


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
        registry: Registry | None = None,
    ) -> None:
        """config.max_model_len bounds every sequence. The pool takes the weights' device and dtype.

        registry: processors and criteria that requests may name.
        """
        self._device = weights.embedding.device
        dtype = weights.embedding.dtype
        max_num_blocks = num_blocks_for(config.max_model_len, cache.block_size)
        self._state = BatchState(len(cache.groups), max_num_seqs, max_num_blocks, self._device)
        sizes = max_num_seqs, config.vocab_size, config.max_model_len, config.eos_token_ids, self._device
        rows = RowState(*sizes)
        custom = None if registry is None else CustomRows(registry, rows)
        self._sampler = Sampler(*sizes, custom, rows)
        self._storage = KVCacheStorage(cache, config.num_kv_heads, config.head_dim, dtype, self._device)
        self._model = TorchModel(config, weights, self._storage, cache.groups)
        shape = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, cache.num_blocks, cache.block_size
        )
        self._planners = [Planner(shape, group.window, self._device, dtype) for group in cache.groups]
        self._guided = GuidedRows(config.vocab_size)
        self._last: _Pending | None = None
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
            self._guided.set_rows(step.new_rows)
            self._storage.copy_blocks(step.block_copies)
            packed = pack(step, self._state.num_computed, self._max_lone_chunk)
            assert len(packed.token_ids) == step.num_tokens
            self._last = self._compute(step, packed)
        except torch.AcceleratorError as error:
            raise FatalStepError(lost_device(error)) from error
        self._advance(step)
        return self._last

    def _compute(self, step: StepInput, packed: PackedStep) -> "_Pending":
        layout, state = packed.layout, self._state
        token_ids, rows, positions, sample_index, sample_rows = self._to_device(packed)
        decodes, decode_rows = sample_index[: packed.num_decodes], sample_rows[: packed.num_decodes]
        token_ids.index_copy_(0, decodes, state.last_token.index_select(0, decode_rows))
        plans = [
            planner.plan(layout, rows, positions, table)
            for planner, table in zip(self._planners, state.block_tables, strict=True)
        ]
        last = self._model(token_ids, positions, plans)
        logits = self._model.logits(last, sample_index)
        host_rows = packed.sample_rows.tolist()
        guided = self._guided.start(host_rows)
        if guided:
            self._mask(guided)
        sampled = self._sampler.sample(logits, sample_rows, host_rows)
        state.last_token.index_copy_(0, sample_rows, sampled.token_ids)
        reports = sampled.report is not None
        num_reported = self._sampler.hints(host_rows)["num_reported"].tolist() if reports else []
        scores = {index: self._score(step, index, last, part) for index, part in packed.scored.items()}
        return _Pending(
            step.step_id, sampled, num_reported, scores, lambda out: self._guided.take(guided, out)
        )

    def _mask(self, guided: list[GuidedSample]) -> None:
        """Grammars follow the last step's tokens, which on CUDA means to wait for them."""
        if self._last is not None:
            self._last.result()
        write_masks(self._sampler.tables.masks, guided, self._guided.fill(guided))

    def _score(self, step: StepInput, index: int, last: LastLayer, tokens: IntArray) -> Scores:
        """Log-probabilities of a chunk's next tokens, a slice at a time: logits are large."""
        chunk = step.chunks[index]
        num_reported = int(self._sampler.hints([chunk.row])["num_scored"][0])
        parts = []
        for start in range(0, len(tokens), _SCORED_SLICE):
            part = slice(start, start + _SCORED_SLICE)
            logits = self._model.logits(last, to_device(torch.from_numpy(tokens[part]), self._device))
            targets = torch.tensor(chunk.next_token_ids[part])
            parts.append(score(logits, to_device(targets, self._device), num_reported))
        return Scores(num_reported, [HostCopy(part) for part in parts])

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

    def __init__(
        self,
        step_id: int,
        sampled: Sampled,
        num_reported: list[int],
        scores: Mapping[int, Scores],
        take: Callable[[StepOutput], StepOutput],
    ) -> None:
        """take: is told what was sampled, once; its answer is the step's."""
        self._step_id = step_id
        self._sampled = HostCopy(torch.stack((sampled.token_ids, sampled.finishes.long())))
        self._report = None if sampled.report is None else HostCopy(sampled.report)
        self._errors = sampled.errors
        self._num_reported = num_reported
        self._scores = scores
        self._take = take
        self._output: StepOutput | None = None

    def result(self) -> StepOutput:
        """See scheduler.step.PendingStep."""
        if self._output is None:
            try:
                self._output = self._take(self._read())
            except torch.AcceleratorError as error:
                raise FatalStepError(lost_device(error)) from error
        return self._output

    def _read(self) -> StepOutput:
        report = None if self._report is None else self._report.wait()
        answer = Answer(self._sampled.wait(), report, self._num_reported, self._errors)
        return answer.to_output(self._step_id, {index: each.read() for index, each in self._scores.items()})
