"""Sizes that the sampling kernels are compiled for: they change the time, never the result."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Powers of two; block to finish_warps, but `small`, were measured on an H200 (benchmarks/sampling.py).

    block: tokens of which the first kernel leaves one maximum and one mass.
    chunk: blocks that one program of it reads.
    tile: blocks that the last kernel looks at in one go.
    small: tokens that it compares each with each.
    few: tokens that it holds in registers; where more may survive, it passes over the logits several times.
    summary_warps, finish_warps: of the first and the last kernel.
    finish_registers: the most of a thread of the last kernel: with 128, an SM holds two programs of 8 warps,
        so that 256 rows are one wave on a large GPU; what does not fit goes to memory.
    span: tokens that a program processes in one go, at least 32. history_span: of a history.
    programs: enough of them for a GPU; with more rows, each does more.
    process_warps, report_warps: of these kernels. process_registers: the most of a thread.
    """

    block: int = 128
    chunk: int = 64
    tile: int = 32
    small: int = 256
    few: int = 2048
    summary_warps: int = 8
    finish_warps: int = 8
    finish_registers: int = 128
    span: int = 2048
    history_span: int = 8192
    programs: int = 2048
    process_warps: int = 8
    process_registers: int = 64
    report_warps: int = 8
