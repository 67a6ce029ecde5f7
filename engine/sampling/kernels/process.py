"""The pass over all logits, where some rows change theirs: bias, penalties, and what may be sampled."""

import triton
import triton.language as tl

from engine.sampling.kernels.blocks import log_sum_exp, needs_masses, summarize
from engine.sampling.kernels.patch import has_bans
from engine.sampling.kernels.row import BEAM, CHANGES, FLAGS, NUM_REPORTED, TEMPERATURE, load_float
from engine.sampling.rows import Column, Flag
from engine.sampling.tables import PROMPT_SHIFT

_REPETITION = tl.constexpr(int(Column.REPETITION))
_PRESENCE = tl.constexpr(int(Column.PRESENCE))
_FREQUENCY = tl.constexpr(int(Column.FREQUENCY))
_NUM_BIASES = tl.constexpr(int(Column.NUM_BIASES))
_PENALIZES = tl.constexpr(int(Flag.PENALIZES))
_REPEATS_PROMPT = tl.constexpr(int(Flag.REPEATS_PROMPT))
_ADDS_PROMPT = tl.constexpr(int(Flag.ADDS_PROMPT))
_MASKS = tl.constexpr(int(Flag.MASKS))
_SHIFT = tl.constexpr(PROMPT_SHIFT)
_OUTPUT_MASK = tl.constexpr((1 << PROMPT_SHIFT) - 1)
_WORD = tl.constexpr(32)  # tokens of a word of the masks


@triton.jit
def _penalize(values, counts, penalties, flags):
    """The penalties of tokens with these words of tables.seen. Each operation rounds by itself, as in torch:
    the kernel has to be compiled without fused multiply-adds. penalties: repetition, presence, frequency.
    """
    in_output = counts & _OUTPUT_MASK
    in_prompt = counts >> _SHIFT
    repeated = in_output + tl.where((flags & _REPEATS_PROMPT) != 0, in_prompt, 0)
    added = in_output + tl.where((flags & _ADDS_PROMPT) != 0, in_prompt, 0)
    repetition, presence, frequency = penalties
    if repetition != 1:
        scaled = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
        values = tl.where(repeated > 0, scaled, values)
    if (presence != 0) | (frequency != 0):
        values = tl.where(added > 0, values - presence, values)
        values -= frequency * added.to(tl.float32)
    return values


@triton.jit
def _in_blocks(values, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """[SPAN // BLOCK, BLOCK]; NaN as +inf, which the largest logit then shows."""
    return tl.reshape(tl.where(values == values, values, float("inf")), (SPAN // BLOCK, BLOCK))


@triton.jit(do_not_specialize=["num_blocks", "num_spans"])
def process_rows(
    logits,  # [n, vocab_size]
    rows,  # int32 [n], -1: nothing to do
    packed,  # int32: rows.RowState
    seen,  # these five: tables.RowTables
    seen_bits,
    masks,
    bias_ids,
    biases,
    raw_maxima,  # float32 [n, num_blocks], and raw_masses: of summarize_raw; written, as it does, for rows
    raw_masses,  # that report, but for those of a beam search
    banned,  # int32 [n, mask_width]: of patch_rows; becomes zeros again
    processed,  # float32 [n, vocab_size]
    maxima,  # float32 [n, num_blocks], and masses: as those of summarize_blocks
    masses,
    logits_stride,
    packed_stride,
    vocab_size,
    mask_width,
    num_blocks,
    num_spans,  # of a program
    SPAN: tl.constexpr,  # tokens
    BLOCK: tl.constexpr,  # tokens of which there is one maximum
    MAX_BIASES: tl.constexpr,
    LENGTH: tl.constexpr,  # num_blocks, to a power of two
):
    """Rows without Flag.CHANGES have no processed logits; their maxima and masses are of the model's."""
    sample = tl.program_id(1)
    logits += sample.to(tl.int64) * logits_stride
    begin = tl.program_id(0) * num_spans * SPAN
    end = tl.minimum(begin + num_spans * SPAN, vocab_size)
    bits = tl.arange(0, _WORD)
    # Logits are asked for one span ahead, and before it is known which row they are of.
    ahead = (begin // _WORD + tl.arange(0, SPAN // _WORD))[:, None] * _WORD + bits[None, :]
    given = tl.load(logits + ahead, mask=ahead < end, other=float("-inf"))
    row = tl.load(rows + sample).to(tl.int64)
    if row < 0:
        return
    state = packed + row * packed_stride
    flags = tl.load(state + FLAGS)
    penalties = (load_float(state, _REPETITION), load_float(state, _PRESENCE), load_float(state, _FREQUENCY))
    processed += sample.to(tl.int64) * vocab_size
    seen += row * vocab_size
    seen_bits += row * mask_width
    masks += row * mask_width
    banned += sample.to(tl.int64) * mask_width
    raw_maxima += sample * num_blocks
    raw_masses += sample * num_blocks
    maxima += sample * num_blocks
    masses += sample * num_blocks
    base = tl.full((), 0.0, tl.float32)
    if (flags & BEAM) != 0:
        base = log_sum_exp(raw_maxima, raw_masses, num_blocks, LENGTH)
    reports = (tl.load(state + NUM_REPORTED) >= 0) & ((flags & BEAM) == 0)
    is_banning = has_bans(state)
    is_weighed = needs_masses(state)
    temperature = load_float(state, TEMPERATURE)

    start = begin
    while start < end:
        words = start // _WORD + tl.arange(0, SPAN // _WORD)
        token_ids = words[:, None] * _WORD + bits[None, :]
        blocks = start // BLOCK + tl.arange(0, SPAN // BLOCK)
        values = given.to(tl.float32)
        ahead = token_ids + SPAN
        given = tl.load(logits + ahead, mask=ahead < end, other=float("-inf"))
        if reports:
            in_blocks = _in_blocks(values, SPAN, BLOCK)
            summarize(in_blocks, blocks, num_blocks, raw_maxima, raw_masses, 1.0, True)
        values -= base
        if (flags & _PENALIZES) != 0:
            # Most words of `seen` are zeros: only sectors that hold others are read.
            word = tl.load(seen_bits + words, mask=words < mask_width, other=0)
            is_seen = ((word[:, None] >> bits[None, :]) & 1) != 0
            values = _penalize(values, tl.load(seen + token_ids, mask=is_seen, other=0), penalties, flags)
        if (flags & _MASKS) != 0:
            mask = tl.load(masks + words, mask=words < mask_width, other=0)
            values = tl.where(((mask[:, None] >> bits[None, :]) & 1) != 0, values, float("-inf"))
        if is_banning:
            ban = tl.load(banned + words, mask=words < mask_width, other=0)
            values = tl.where(((ban[:, None] >> bits[None, :]) & 1) != 0, float("-inf"), values)
            tl.debug_barrier()  # several threads may read the same word
            tl.store(banned + words, 0, mask=ban != 0)
        if (flags & CHANGES) != 0:
            tl.store(processed + token_ids, values, mask=token_ids < end)
        in_blocks = _in_blocks(values, SPAN, BLOCK)
        summarize(in_blocks, blocks, num_blocks, maxima, masses, temperature, is_weighed)
        start += SPAN

    num_biases = tl.load(state + _NUM_BIASES)
    if num_biases > 0:  # comes before all else, so begin again where there is one
        tl.debug_barrier()
        index = tl.arange(0, MAX_BIASES)
        ids = tl.load(bias_ids + row * MAX_BIASES + index, mask=index < num_biases, other=-1)
        bias = tl.load(biases + row * MAX_BIASES + index, mask=index < num_biases, other=0.0)
        is_here = (ids >= begin) & (ids < end)
        biased = tl.load(logits + ids, mask=is_here, other=0.0).to(tl.float32) - base + bias
        if (flags & _PENALIZES) != 0:
            biased = _penalize(biased, tl.load(seen + ids, mask=is_here, other=0), penalties, flags)
        is_banned = tl.load(processed + ids, mask=is_here, other=0.0) == float("-inf")
        tl.store(processed + ids, tl.where(is_banned, float("-inf"), biased), mask=is_here)
        tl.debug_barrier()
        start = tl.where(tl.max(is_here.to(tl.int32), 0) > 0, begin, end)
        while start < end:
            span = start + tl.arange(0, SPAN)
            in_span = tl.load(processed + span, mask=span < end, other=float("-inf"))
            of_span = start // BLOCK + tl.arange(0, SPAN // BLOCK)
            in_blocks = _in_blocks(in_span, SPAN, BLOCK)
            summarize(in_blocks, of_span, num_blocks, maxima, masses, temperature, is_weighed)
            start += SPAN
