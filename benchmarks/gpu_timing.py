"""Times on a GPU, as the benchmarks take them."""

from collections.abc import Callable

import torch

from engine.tensorrt_backend.graphs import measure

COPY_BYTES = 4 << 30


def graph_seconds(enqueue: Callable[[], object], num_replays: int = 20) -> float:
    """Of one run of a CUDA graph of enqueue(), the median."""
    torch.cuda.synchronize()  # what it reads was made on another stream
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return measure(enqueue, stream, num_replays=num_replays) / 1e6


def copy_bandwidth() -> float:
    """Bytes read and written a second."""
    source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    # By a kernel: a graph's copy of memory to memory reached two thirds of this on an H200.
    return 2 * source.nbytes / graph_seconds(lambda: torch.neg(source, out=target))
