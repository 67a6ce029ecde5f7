"""The kernels, launched: each method is one launch, whose grid depends on shapes alone."""

from dataclasses import dataclass

import triton
from torch import Tensor

from engine.sampling.kernels.blocks import summarize_blocks, summarize_raw
from engine.sampling.kernels.finish import finish_rows
from engine.sampling.kernels.patch import patch_rows
from engine.sampling.kernels.process import process_rows
from engine.sampling.kernels.report import report_rows
from engine.sampling.kernels.scratch import Scratch
from engine.sampling.kernels.tuning import Tuning
from engine.sampling.rows import Column, RowState


@dataclass(frozen=True, slots=True)
class Passes:
    """Over logits, [n, vocab_size] of a float dtype, of rows, int32 [n] with -1 for padding.

    is_processed: whether rows may have processed logits, which are read instead.
    """

    state: RowState
    scratch: Scratch
    tuning: Tuning

    @property
    def _num_blocks(self) -> int:
        return self.scratch.maxima.shape[1]

    @property
    def _length(self) -> int:
        length: int = triton.next_power_of_2(self._num_blocks)
        return length

    @property
    def _stop_width(self) -> int:
        return self.state.packed.shape[1] - Column.STOP_IDS

    def summarize(self, logits: Tensor, rows: Tensor, *, is_processed: bool) -> None:
        """is_processed: of rows with processed logits alone, where these have changed since `process`."""
        num_samples, vocab_size = logits.shape
        packed, scratch = self.state.packed, self.scratch
        chunk = min(self.tuning.chunk, self._length)
        summarize_blocks[(triton.cdiv(self._num_blocks, chunk), num_samples)](
            logits,
            scratch.processed if is_processed else None,
            rows,
            packed,
            scratch.maxima,
            scratch.masses,
            logits.stride(0),
            packed.stride(0),
            vocab_size,
            self._num_blocks,
            BLOCK=self.tuning.block,
            CHUNK=chunk,
            num_warps=self.tuning.summary_warps,
        )

    def finish(
        self, logits: Tensor, rows: Tensor, last_token: Tensor, out: Tensor, *, is_processed: bool
    ) -> None:
        packed, scratch, tables = self.state.packed, self.scratch, self.state.tables
        finish_rows[(len(rows),)](
            logits,
            scratch.processed if is_processed else None,
            tables.seen if is_processed else None,
            tables.seen_bits if is_processed else None,
            tables.history if is_processed else None,
            rows,
            packed,
            scratch.maxima,
            scratch.masses,
            scratch.listed,
            scratch.few_ids,
            scratch.few_keys,
            last_token,
            out,
            logits.stride(0),
            packed.stride(0),
            out.stride(0),
            logits.shape[1],
            tables.history.shape[1],
            self._num_blocks,
            BLOCK=self.tuning.block,
            TILE=min(self.tuning.tile, self._length),
            SMALL=min(self.tuning.small, self.tuning.few),
            FEW=self.tuning.few,
            LENGTH=self._length,
            STOP_WIDTH=self._stop_width,
            STOP_LENGTH=triton.next_power_of_2(self._stop_width),
            num_warps=self.tuning.finish_warps,
            maxnreg=self.tuning.finish_registers,
        )

    def summarize_raw(self, logits: Tensor, rows: Tensor | None) -> None:
        """rows: None for all logits, whatever rows they are of."""
        num_samples, vocab_size = logits.shape
        packed, scratch = self.state.packed, self.scratch
        chunk = min(self.tuning.chunk, self._length)
        num_chunks = triton.cdiv(self._num_blocks, chunk)
        if rows is not None:  # of which most have nothing to do: it is their starting that counts
            num_chunks = min(num_chunks, triton.cdiv(self.tuning.programs, 2 * num_samples))
        summarize_raw[(num_chunks, num_samples)](
            logits,
            rows,
            None if rows is None else packed,
            scratch.raw_maxima,
            scratch.raw_masses,
            logits.stride(0),
            packed.stride(0),
            vocab_size,
            self._num_blocks,
            BLOCK=self.tuning.block,
            CHUNK=chunk,
            num_warps=self.tuning.summary_warps,
        )

    def process(self, logits: Tensor, rows: Tensor) -> None:
        num_samples, vocab_size = logits.shape
        packed, scratch, tables = self.state.packed, self.scratch, self.state.tables
        # Many programs for few rows; for many rows not so many that starting them costs more than their work.
        num_spans = triton.cdiv(vocab_size, self.tuning.span)
        spans_of_program = triton.cdiv(num_spans * num_samples, self.tuning.programs)
        process_rows[(triton.cdiv(num_spans, spans_of_program), num_samples)](
            logits,
            rows,
            packed,
            tables.seen,
            tables.seen_bits,
            tables.masks,
            tables.bias_ids,
            tables.biases,
            scratch.raw_maxima,
            scratch.raw_masses,
            scratch.banned,
            scratch.processed,
            scratch.maxima,
            scratch.masses,
            logits.stride(0),
            packed.stride(0),
            vocab_size,
            tables.masks.shape[1],
            self._num_blocks,
            spans_of_program,
            SPAN=self.tuning.span,
            BLOCK=self.tuning.block,
            MAX_BIASES=tables.bias_ids.shape[1],
            LENGTH=self._length,
            num_warps=self.tuning.process_warps,
            maxnreg=self.tuning.process_registers,
            enable_fp_fusion=False,
        )

    def patch(self, logits: Tensor, rows: Tensor) -> None:
        packed, tables = self.state.packed, self.state.tables
        history_width = tables.history.shape[1]
        patch_rows[(triton.cdiv(history_width, self.tuning.history_span), len(rows))](
            rows,
            packed,
            tables.history,
            tables.bad_ids,
            tables.bad_ends,
            self.scratch.banned,
            packed.stride(0),
            history_width,
            logits.shape[1],
            SPAN=self.tuning.history_span,
            MAX_BAD_TOKENS=tables.bad_ids.shape[1],
            MAX_WORDS=tables.bad_ends.shape[1],
            STOP_LENGTH=triton.next_power_of_2(self._stop_width),
            num_warps=self.tuning.process_warps,
        )

    def report(
        self, logits: Tensor, rows: Tensor | None, token_ids: Tensor, report: Tensor, num_reported: int = -1
    ) -> None:
        """token_ids: int32 [n]. num_reported: of every row, where rows is None."""
        packed, scratch = self.state.packed, self.scratch
        report_rows[(len(logits),)](
            logits,
            None if rows is None else scratch.processed,
            rows,
            None if rows is None else packed,
            token_ids,
            None if rows is None else scratch.maxima,
            scratch.raw_maxima,
            scratch.raw_masses,
            scratch.listed,
            report,
            num_reported,
            logits.stride(0),
            packed.stride(0),
            logits.shape[1],
            self._num_blocks,
            BLOCK=self.tuning.block,
            LENGTH=self._length,
            num_warps=self.tuning.report_warps,
        )
