"""Decode steps: how long, where the time goes, and how far that is from the floor and from others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

from benchmarks import gpu_peer as peer
from benchmarks.gpu_engine import Engine
from benchmarks.gpu_reference import Reference
from benchmarks.gpu_report import Aim, Report
from benchmarks.gpu_rows import block_tables, decode_steps, new_rows, run_steps
from engine.model.weights import num_parameters
from engine.torch_backend.segments import TorchSegments

BATCHES = (1, 8, 16, 32, 64, 128, 256)
LONG_BATCHES = (1, 8, 64)
CONTEXTS = {128: 128, 1024: 48, 8192: 48}  # tokens of the prompt -> decode steps
_PEER_CONTEXT = 128
_NUM_WARMUPS = 8
_HEADER = (
    *("context", "batch", "bucket", "step", "peer", "ratio", "floor", "x floor"),
    *("graph", "segm.", "attn.", "last", "sample", "torch"),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Milliseconds. step: as it is served, two in flight. floor: weights and K/V at the copy bandwidth.

    graph: the step without the host; parts: what it consists of; torch: with torch's matrix products.
    """

    bucket: int
    step: float
    floor: float
    graph: float
    parts: tuple[float, ...]
    torch: float


def measure_decode(
    engine: Engine, reference: Reference, report: Report, peer_ms: Mapping[int, float]
) -> None:
    engine.fill_pool()
    report.line(f"{peer.NAME} is the peer. Milliseconds. step: served, two in flight. floor: weights and K/V")
    report.line(
        "at the copy's bandwidth. graph: the step alone. last: o_proj and MLP of the last layer, head."
    )
    report.line("torch: the graph with torch's segments, and the same kernels for attention and sampling.")
    found: dict[tuple[int, int], Decoded] = {}
    for context, num_steps in CONTEXTS.items():
        for batch in BATCHES if context == _PEER_CONTEXT else LONG_BATCHES:
            case = partial(_decode, engine, reference, batch, context, num_steps)
            decoded = report.attempt(f"batch {batch}, context {context}", case)
            if decoded is not None:
                found[context, batch] = decoded
    peers = {(_PEER_CONTEXT, batch): milliseconds for batch, milliseconds in peer_ms.items()}
    report.table(_HEADER, [_cells(key, decoded, peers.get(key)) for key, decoded in found.items()])
    _set_aims(found, peers, report)


def _decode(engine: Engine, reference: Reference, batch: int, context: int, num_steps: int) -> Decoded | None:
    """None: the pool is too small."""
    tables = block_tables(engine, batch, context + num_steps)
    if tables is None:
        return None
    ran = run_steps(engine, decode_steps(new_rows(tables, context, context), num_steps))
    step = median(later - earlier for earlier, later in pairwise(ran.ends[_NUM_WARMUPS:])) * 1000
    middle = context + num_steps // 2
    run_steps(engine, decode_steps(new_rows(tables, context, middle), 1))
    parts = engine.parts(batch)
    config, weights = engine.model.config, engine.model.weights
    # The embedding is only looked up.
    num_weights = num_parameters(config) - config.vocab_size * config.hidden_size
    num_bytes = num_weights * engine.model.dtype.itemsize + batch * middle * engine.kv_token_bytes
    return Decoded(
        bucket=engine.routed.decode.bucket_for(batch),
        step=step,
        floor=num_bytes / reference.bandwidth * 1000,
        graph=parts.whole(),
        parts=(parts.segments(), parts.attention(), parts.last(), parts.sampling()),
        torch=parts.whole(TorchSegments(config, weights)),
    )


def _cells(key: tuple[int, int], decoded: Decoded, peer_ms: float | None) -> list[str]:
    beside = ["-", "-"] if peer_ms is None else [f"{peer_ms:.2f}", f"{decoded.step / peer_ms:.2f}"]
    return [
        *(f"{key[0]}", f"{key[1]}", f"{decoded.bucket}", f"{decoded.step:.3f}", *beside),
        *(f"{decoded.floor:.3f}", f"{decoded.step / decoded.floor:.2f}", f"{decoded.graph:.3f}"),
        *(f"{part:.3f}" for part in decoded.parts),
        f"{decoded.torch:.3f}",
    ]


def _set_aims(
    found: Mapping[tuple[int, int], Decoded], peers: Mapping[tuple[int, int], float], report: Report
) -> None:
    for key, milliseconds in peers.items():
        if key not in found:
            continue
        limit = peer.AIM_OF_PEER[key[1]] * milliseconds
        report.aims.append(Aim(f"decode step, batch {key[1]}", found[key].step, limit, "ms"))
    if (at_64 := found.get((_PEER_CONTEXT, 64))) is None:
        return
    report.aims.append(Aim("decode step, batch 64", at_64.step / at_64.floor, peer.AIM_OF_FLOOR, "x floor"))
