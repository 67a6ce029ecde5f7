"""The sampler of a step that a CUDA graph replays."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from engine.sampling.kernels.blocks import summarize_blocks
from engine.sampling.kernels.finish import finish_rows
from engine.sampling.kernels.tuning import Tuning
from engine.sampling.rows import Column, RowState
from scheduler.step import NewRow


@dataclass(frozen=True, slots=True)
class _Scratch:
    """What the first kernel leaves for the second, and what that one keeps for itself.

    maxima, masses, listed: [samples, blocks]. few_ids, few_keys: [samples, few].
    """

    maxima: Tensor
    masses: Tensor
    listed: Tensor
    few_ids: Tensor
    few_keys: Tensor


class DeviceSampler:
    """engine.sampling.sampler.Sampler as kernels whose grids depend on shapes alone, to be captured in a CUDA
    graph: what a row asks for is read on the device, and each program pays for its own row's wishes only.

    One read of the logits gives the maximum and the mass of every block of tokens. They are enough for greedy
    rows and for rows with a temperature alone. Elsewhere they bound what can survive, mostly to a few blocks,
    whose survivors are held in registers and searched for the exact threshold: the one of the torch sampler,
    but for the rounding of sums. Where too many may survive, the search goes over the logits themselves.
    """

    def __init__(
        self,
        max_num_rows: int,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        max_num_samples: int,
        device: torch.device,
        tuning: Tuning = Tuning(),  # noqa: B008
    ) -> None:
        self._tuning = tuning
        self._vocab_size = vocab_size
        self._rows = RowState(max_num_rows, vocab_size, max_model_len, eos_token_ids, device)
        self._num_blocks = triton.cdiv(vocab_size, tuning.block)
        by_block, few = (max_num_samples, self._num_blocks), (max_num_samples, tuning.few)
        self._scratch = _Scratch(
            maxima=torch.empty(by_block, dtype=torch.float32, device=device),
            masses=torch.empty(by_block, dtype=torch.float32, device=device),
            listed=torch.empty(by_block, dtype=torch.int32, device=device),
            few_ids=torch.empty(few, dtype=torch.int32, device=device),
            few_keys=torch.empty(few, dtype=torch.int32, device=device),
        )

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """As Sampler.set_rows: enqueued on the current stream, and not to be captured."""
        if new_rows:
            self._rows.write(new_rows)

    def sample(self, logits: Tensor, rows: Tensor, last_token: Tensor, out: Tensor) -> None:
        """One token for each row, which counts as generated. Nothing is allocated or waited for.

        The first call with a dtype compiles, which a capture must not: make one of padding before it.

        logits: [n, vocab_size] float32, bfloat16 or float16, read only. rows: [n] int32, all different but
        for -1, which is padding. out: [2, n] int32, token ids and `Finish` codes, 0 and 0 for padding.
        last_token: [max_num_rows] int32, gets the token ids of the rows. A row with NaN or +inf in it, or
        with nothing above -inf, gets Finish.ERROR and some token id in range. Where several logits are the
        largest, greedy rows take the lowest token id.
        """
        num_samples = len(rows)
        packed, scratch = self._rows.packed, self._scratch
        assert logits.shape == (num_samples, self._vocab_size)
        assert logits.stride(1) == out.stride(1) == 1
        assert num_samples <= len(scratch.maxima)
        tuning, length = self._tuning, triton.next_power_of_2(self._num_blocks)
        chunk = min(tuning.chunk, length)
        summarize_blocks[(triton.cdiv(self._num_blocks, chunk), num_samples)](
            logits,
            rows,
            packed,
            scratch.maxima,
            scratch.masses,
            logits.stride(0),
            packed.stride(0),
            self._vocab_size,
            self._num_blocks,
            BLOCK=tuning.block,
            CHUNK=chunk,
            num_warps=tuning.summary_warps,
        )
        stop_width = packed.shape[1] - Column.STOP_IDS
        finish_rows[(num_samples,)](
            logits,
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
            self._vocab_size,
            self._num_blocks,
            BLOCK=tuning.block,
            TILE=min(tuning.tile, length),
            FEW=tuning.few,
            LENGTH=length,
            STOP_WIDTH=stop_width,
            STOP_LENGTH=triton.next_power_of_2(stop_width),
            num_warps=tuning.finish_warps,
        )
