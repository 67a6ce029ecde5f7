"""CUDA graphs of what can be enqueued without allocating or waiting."""

from collections.abc import Callable
from statistics import median

import torch


def capture(enqueue: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of what enqueue() puts on the stream. It runs once before, so that kernels are compiled.

    Other threads may go on using the device meanwhile.
    """
    with torch.cuda.stream(stream):
        enqueue()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        enqueue()
    return graph


def measure(
    enqueue: Callable[[], object], stream: torch.cuda.Stream, *, num_replays: int = 5, num_warmups: int = 2
) -> float:
    """Microseconds of one run of a graph of enqueue(), the median of num_replays."""
    graph = capture(enqueue, stream)
    times = []
    with torch.cuda.stream(stream):
        for replay in range(num_warmups + num_replays):
            start, end = (torch.Event(stream.device, enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            if replay >= num_warmups:
                times.append((start, end))
    stream.synchronize()
    return median(start.elapsed_time(end) for start, end in times) * 1000
