"""The static token counts that plans and graphs are made for, and which of them serves how many tokens."""

from bisect import bisect_left
from collections.abc import Mapping

# Matrix products of fewer than 16 rows cost what 16 cost; further on, sizes between these gained little on an
# H200, and every bucket makes the first start longer.
_DECODE = (1, 4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024)
_MIXED = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)

_GAIN = 0.97  # of its own time, below which another bucket takes over


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Numbers of rows in steps that only decode, rising; the last one is max_num_seqs itself."""
    return (*(size for size in _DECODE if size < max_num_seqs), max_num_seqs)


def token_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """Numbers of tokens in any step, rising: the decode buckets, and larger ones up to the token budget."""
    larger = (size for size in _MIXED if max_num_seqs < size < max_num_batched_tokens)
    return tuple(sorted({*decode_buckets(max_num_seqs), *larger, max_num_batched_tokens}))


class Router:
    """Sends a number of tokens to the bucket that computes it soonest, as measured.

    A larger bucket can be faster than a smaller one, because the kernels of each are chosen apart. It has to
    be so by more than measurements differ, since its attention and sampling have more padding.
    """

    def __init__(self, microseconds: Mapping[int, float]) -> None:
        """microseconds: of each usable bucket."""
        self._sizes = sorted(microseconds)
        best: list[int] = []
        for size in reversed(self._sizes):
            is_routed = best and microseconds[best[-1]] < _GAIN * microseconds[size]
            best.append(best[-1] if is_routed else size)
        self._best = best[::-1]

    @property
    def largest(self) -> int:
        return self._sizes[-1]

    @property
    def used(self) -> list[int]:
        """Buckets that serve anything, rising."""
        return sorted(set(self._best))

    def bucket_for(self, num_tokens: int) -> int:
        """num_tokens: at most `largest`."""
        return self._best[bisect_left(self._sizes, num_tokens)]

    def routes(self) -> list[tuple[int, int]]:
        """(size of a bucket, the bucket that serves it instead) where these differ."""
        return [(size, best) for size, best in zip(self._sizes, self._best, strict=True) if size != best]
