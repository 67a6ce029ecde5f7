"""Paged attention on a GPU: decode beside the copy bandwidth, prefill beside torch's flash attention.

    python -m benchmarks.attention

Heads of Llama-3.1-8B (32 query heads, 8 key/value heads of 128) in bf16. Each time is the median of replays
of a CUDA graph of many layers, each with a pool of its own, so that a layer finds none of its K/V in the L2
cache. A layer includes RoPE and the writing of K/V. Exit status 1 if an aim is missed.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_timing import copy_bandwidth, graph_seconds
from engine.attention.kernels import TILE_TOKENS, PagedAttention, StepAttention, Tuning
from engine.attention.plan import AttentionShape
from engine.attention.rope import inverse_frequencies
from engine.model.config import RopeConfig

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
BLOCK_SIZE = 16
DTYPE = torch.bfloat16
BATCHES = (1, 8, 64, 256)
CONTEXTS = (192, 1024, 4096, 8192)
PROMPTS = (512, 2048, 4096, 8192)
AIM_OF_COPY = 0.75  # at batch 64 and context 4096
AIM_OF_FLASH = 0.5  # at 4096 tokens
_ROTATED_BYTES = 512 << 20  # read by the layers of a graph: many times the L2 cache
_MAX_NUM_LAYERS = 256


@dataclass(frozen=True)
class Layers:
    """Pools and inputs of the layers of a graph; one group attends over all."""

    group: PagedAttention
    pools: Tensor  # [layers, 2, num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    qkv: Tensor
    out: Tensor

    def attend(self, step: StepAttention) -> None:
        for keys, values in self.pools:
            step.attend(self.qkv, keys, values, self.out)


def make_layers(num_rows: int, context: int, num_tokens: int, tuning: Tuning | None = None) -> Layers:
    """num_rows sequences of context tokens in blocks all over the pool; num_tokens in a step."""
    num_blocks = -(-context // BLOCK_SIZE)
    shape = AttentionShape(NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, num_rows * num_blocks, BLOCK_SIZE)
    layer_bytes = 2 * shape.num_lines * HEAD_DIM * DTYPE.itemsize
    num_layers = max(2, min(_MAX_NUM_LAYERS, _ROTATED_BYTES // layer_bytes))
    table = torch.randperm(shape.num_blocks, device="cuda", dtype=torch.int32).view(num_rows, num_blocks)
    group = PagedAttention(
        shape,
        None,
        inverse_frequencies(RopeConfig(500000.0), HEAD_DIM).cuda(),
        table,
        max_num_tokens=num_tokens,
        max_num_lone=num_rows,
        max_model_len=context,
        dtype=DTYPE,
        tuning=tuning,
    )
    pool = (num_layers, 2, shape.num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    pools = torch.empty(pool, dtype=DTYPE, device="cuda").normal_()
    width = NUM_HEADS * HEAD_DIM
    qkv = torch.randn(num_tokens, width + 2 * NUM_KV_HEADS * HEAD_DIM, dtype=DTYPE, device="cuda")
    return Layers(group, pools, qkv, torch.empty(num_tokens, width, dtype=DTYPE, device="cuda"))


def int32(values: list[int] | list[tuple[int, int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def decode(batch: int, context: int, tuning: Tuning | None = None) -> tuple[float, float]:
    """Seconds a layer, and of the part that layers share."""
    layers = make_layers(batch, context, batch, tuning)
    rows, positions = int32(list(range(batch))), int32([context - 1] * batch)
    step = layers.group.begin(rows, positions, None, batch)
    shared = graph_seconds(lambda: layers.group.begin(rows, positions, None, batch))
    return graph_seconds(lambda: layers.attend(step)) / len(layers.pools), shared


def prefill(num_tokens: int, tuning: Tuning | None = None) -> tuple[float, float]:
    """Seconds a layer, and of its writing of K/V; one prompt."""
    layers = make_layers(1, num_tokens, num_tokens, tuning)
    rows, positions = int32([0] * num_tokens), int32(list(range(num_tokens)))
    starts = range(0, num_tokens, TILE_TOKENS)
    tiles = int32([(start, min(TILE_TOKENS, num_tokens - start)) for start in starts])
    both, write = (layers.group.begin(rows, positions, x, 0) for x in (tiles, None))
    num_layers = len(layers.pools)
    whole, writing = (graph_seconds(partial(layers.attend, step)) for step in (both, write))
    return whole / num_layers, writing / num_layers


def flash(num_tokens: int) -> float:
    """Seconds of torch's flash attention over one prompt, contiguous and rotated already."""
    q, k, v = (
        torch.randn(1, heads, num_tokens, HEAD_DIM, dtype=DTYPE, device="cuda")
        for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )

    def attend() -> None:
        for _ in range(8):
            functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return graph_seconds(attend) / 8


def report_decode(bandwidth: float) -> bool:
    print("\ndecode: batch, context; a layer, share of the copy bandwidth; once a step")
    reached = 0.0
    for batch in BATCHES:
        for context in CONTEXTS:
            layer, shared = decode(batch, context)
            num_bytes = 2 * batch * context * NUM_KV_HEADS * HEAD_DIM * DTYPE.itemsize
            share = num_bytes / layer / bandwidth
            print(f"{batch:6} {context:8} {layer * 1e6:10.1f} us {share:8.1%} {shared * 1e6:8.1f} us")
            if (batch, context) == (64, 4096):
                reached = share
    print(f"aim at batch 64, context 4096: {AIM_OF_COPY:.0%} of the copy; reached {reached:.1%}")
    return reached >= AIM_OF_COPY


def report_prefill() -> bool:
    print("\nprefill: tokens; a layer, of that RoPE and writing; TFLOP/s; torch's flash; ratio of the rates")
    reached = 0.0
    for num_tokens in PROMPTS:
        layer, write = prefill(num_tokens)
        peer = flash(num_tokens)
        flops = 2 * num_tokens * num_tokens * NUM_HEADS * HEAD_DIM
        times = f"{layer * 1e6:10.1f} us {write * 1e6:8.1f} us"
        rates = f"{flops / layer / 1e12:8.0f} {flops / peer / 1e12:8.0f} {peer / layer:8.2f}"
        print(f"{num_tokens:6} {times} {rates}")
        if num_tokens == 4096:
            reached = peer / layer
    print(f"aim at 4096 tokens: {AIM_OF_FLASH} of torch's flash attention; reached {reached:.2f}")
    return reached >= AIM_OF_FLASH


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.attention needs an NVIDIA GPU; there is none here", file=sys.stderr)
        return 2
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e12:.2f} TB/s, read and written")
    reached = [report_decode(bandwidth), report_prefill()]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
