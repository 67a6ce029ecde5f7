"""The sampler of a step that a CUDA graph replays."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.sampling.kernels.passes import Passes
from engine.sampling.kernels.scratch import make_scratch
from engine.sampling.kernels.tuning import Tuning
from engine.sampling.report import MAX_CANDIDATES, REPORT_WIDTH
from engine.sampling.rows import Hints, RowState
from engine.sampling.tables import RowTables
from scheduler.step import NewRow

Custom = Callable[[Tensor, Tensor], None]
"""Called with processed logits, float32 [n, vocab_size], to be changed in place, and rows, int32 [n] with -1
for padding. Rows without Flag.CHANGES have no processed logits: what is there means nothing."""


class DeviceSampler:
    """engine.sampling.sampler.Sampler as kernels whose grids depend on shapes alone, to be captured in a CUDA
    graph: what a row asks for is read on the device, and each program pays for its own row's wishes only.

    One read of the logits gives the maximum and the mass of every block of tokens. They are enough for greedy
    rows and for rows with a temperature alone. Elsewhere they bound what can survive, mostly to a few blocks,
    whose survivors are held in registers and searched for the exact threshold: the one of the torch sampler,
    but for the rounding of sums. Where too many may survive, the search goes over the logits themselves.

    Rows that change their logits get a float32 copy of them, in one pass that gives the maxima and masses
    too, and are sampled from it; the logits themselves are read only.
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
        state: RowState | None = None,
    ) -> None:
        """max_num_samples: the most rows of a step. state: the rows, made as here, where custom processors
        had to know them first. What this allocates: scratch_bytes, and table_bytes for the rows.
        """
        self._vocab_size = vocab_size
        self._max_num_samples = max_num_samples
        self.state = state or RowState(max_num_rows, vocab_size, max_model_len, eos_token_ids, device)
        scratch = make_scratch(max_num_samples, vocab_size, tuning, device)
        self._passes = Passes(self.state, scratch, tuning)

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        """As Sampler.set_rows: enqueued on the current stream, and not to be captured."""
        if new_rows:
            self.state.write(new_rows)

    @property
    def tables(self) -> RowTables:
        """Always the same memory."""
        return self.state.tables

    def processed(self, num_samples: int) -> Tensor:
        """float32 [num_samples, vocab_size], what `sample_processed` hands to `custom`: always the same
        memory.
        """
        return self._passes.scratch.processed[:num_samples]

    def hints(self, host_rows: Sequence[int]) -> Hints:
        """What the rows of a step ask for, to choose between `sample` and `sample_processed`."""
        return self.state.hints(host_rows)

    def sample(self, logits: Tensor, rows: Tensor, last_token: Tensor, out: Tensor) -> None:
        """One token for each row, which counts as generated. Nothing is allocated or waited for.

        The first call with a dtype compiles, which a capture must not: make one of padding before it.
        No row may have Flag.CHANGES, COUNTS or KEEPS, or a NUM_REPORTED of 0 or more: those would be ignored.

        logits: [n, vocab_size] float32, bfloat16 or float16, read only. rows: [n] int32, all different but
        for -1, which is padding. out: [2, n] int32, token ids and `Finish` codes, 0 and 0 for padding.
        last_token: [max_num_rows] int32, gets the token ids of the rows. A row with NaN or +inf in it, or
        with nothing above -inf, gets Finish.ERROR and some token id in range. Where several logits are the
        largest, greedy rows take the lowest token id.
        """
        self._check(logits, rows, out)
        self._passes.summarize(logits, rows, is_processed=False)
        self._passes.finish(logits, rows, last_token, out, is_processed=False)

    def sample_processed(
        self,
        logits: Tensor,
        rows: Tensor,
        last_token: Tensor,
        out: Tensor,
        report: Tensor,
        custom: Custom | None = None,
    ) -> None:
        """`sample` of rows that ask for anything. Captured, or not, like it, if `custom` can be.

        report: int32 [n, REPORT_WIDTH], see sampling.report; rows that report nothing leave it as it is.
        Where a row has Finish.ERROR its report means nothing. Rows of a beam search get the largest of their
        processed logits as token, which nothing counts, and no Finish but ERROR.
        """
        self._check(logits, rows, out)
        assert report.shape == (len(rows), REPORT_WIDTH)
        assert report.is_contiguous()
        passes = self._passes
        passes.summarize_raw(logits, rows)
        passes.patch(logits, rows)
        passes.process(logits, rows)
        if custom is not None:
            custom(self.processed(len(rows)), rows)
            passes.summarize(logits, rows, is_processed=True)
        passes.finish(logits, rows, last_token, out, is_processed=True)
        passes.report(logits, rows, out[0], report)

    def score(self, logits: Tensor, token_ids: Tensor, num_reported: int, report: Tensor) -> None:
        """Log-probabilities of given tokens, and of the num_reported most likely ones beside each.

        logits: [m, vocab_size], of any number of positions up to max_num_samples. token_ids: int32 [m].
        report: int32 [m, REPORT_WIDTH], written. Not to be called while a step is being enqueued elsewhere:
        they share scratch memory.
        """
        assert len(logits) == len(token_ids) == len(report) <= self._max_num_samples
        assert 0 <= num_reported <= MAX_CANDIDATES
        assert logits.stride(1) == 1
        assert report.is_contiguous()
        self._passes.summarize_raw(logits, None)
        self._passes.report(logits, None, token_ids, report, num_reported)

    def _check(self, logits: Tensor, rows: Tensor, out: Tensor) -> None:
        assert logits.shape == (len(rows), self._vocab_size)
        assert logits.stride(1) == out.stride(1) == 1
        assert len(rows) <= self._max_num_samples
