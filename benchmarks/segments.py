"""Segments of an 8B decoder at small batches, on a GPU: own kernels beside torch and the bandwidth.

    python -m benchmarks.segments [--tokens 1 16 64] [--kernels]

Random bf16 weights of the Llama-3.1-8B shape. Segments run in CUDA graphs, four middle layers in turn, so
that no weight is still in the L2 when it is needed again. The floor is the time to read the weights at the
bandwidth of a copy on the same GPU.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_timing import copy_bandwidth, graph_seconds
from engine.model.config import ModelConfig, RopeConfig
from engine.model.weights import LayerWeights, ModelWeights, weight_specs
from engine.skinny.scratch import SkinnyScratch
from engine.skinny.segments import SkinnySegments
from engine.skinny.tiling import MAX_NUM_TOKENS
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.graphs import capture
from engine.torch_backend.segments import TorchSegments

NUM_MIDDLE = 4
SHAPE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_model_len=8192,
    rms_norm_eps=1e-5,
    rope=RopeConfig(500000.0),
    windows=(None,) * (NUM_MIDDLE + 1),
    dtype="bfloat16",
)
DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16

Form = tuple[str, Callable[[int], Segments]]
"""A name, and what makes the segments of a number of tokens."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Inputs and outputs of the segments of a number of tokens."""

    attended: torch.Tensor
    residual: torch.Tensor
    residual_out: torch.Tensor
    qkv: torch.Tensor
    logits: torch.Tensor

    def run_middle(self, segments: Segments) -> None:
        """All of them, with the same inputs."""
        for layer in range(1, NUM_MIDDLE + 1):
            segments.middle(layer, self.attended, self.residual, self.residual_out, self.qkv)

    def run_last(self, segments: Segments) -> None:
        segments.last(self.attended, self.residual, self.logits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--kernels", action="store_true", help="show each kernel of a middle segment")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs an NVIDIA GPU", file=sys.stderr)
        return 1
    weights = random_weights(SHAPE)
    bandwidth = copy_bandwidth()
    floors = [num_bytes / bandwidth * 1e6 for num_bytes in segment_bytes(weights)]
    print(f"{torch.cuda.get_device_name()}: copies at {bandwidth / 1e12:.2f} TB/s")
    print(f"floor: middle {floors[0]:.1f} us, last {floors[1]:.1f} us")
    forms = all_forms(weights)
    print("tokens" + "".join(f" | {name + ': middle':>16} x floor    last x floor" for name, _ in forms))
    for num_tokens in arguments.tokens:
        print(f"{num_tokens:6}" + "".join(f" | {row(make, num_tokens, floors)}" for _, make in forms))
    for num_tokens in arguments.tokens if arguments.kernels else ():
        for name, make in forms:
            print(f"\n{num_tokens} tokens, {name}: microseconds a middle segment")
            print("\n".join(f"  {us:7.1f}  {kernel}" for kernel, us in kernel_times(make, num_tokens)))
    return 0


def all_forms(weights: ModelWeights[torch.Tensor]) -> Sequence[Form]:
    scratch = SkinnyScratch(SHAPE, MAX_NUM_TOKENS, device=DEVICE, dtype=DTYPE)
    return (
        ("skinny", lambda num_tokens: SkinnySegments(SHAPE, weights, num_tokens, scratch)),
        ("torch", lambda _: TorchSegments(SHAPE, weights)),
    )


def row(make: Callable[[int], Segments], num_tokens: int, floors: Sequence[float]) -> str:
    segments, buffers = make(num_tokens), make_buffers(num_tokens)
    middle = graph_seconds(lambda: buffers.run_middle(segments)) * 1e6 / NUM_MIDDLE
    last = graph_seconds(lambda: buffers.run_last(segments)) * 1e6
    return f"{middle:16.1f} {middle / floors[0]:7.2f} {last:7.1f} {last / floors[1]:7.2f}"


def make_buffers(num_tokens: int) -> Buffers:
    widths = (SHAPE.q_size, SHAPE.hidden_size, SHAPE.hidden_size, SHAPE.qkv_size, SHAPE.vocab_size)
    return Buffers(*(torch.randn(num_tokens, width, device=DEVICE, dtype=DTYPE) for width in widths))


def random_weights(config: ModelConfig) -> ModelWeights[torch.Tensor]:
    """Matrices that keep the size of what they multiply."""
    layers: list[dict[str, Any]] = [{} for _ in range(config.num_layers)]
    outside: dict[str, Any] = {}
    for spec in weight_specs(config):
        weight = torch.randn(spec.shape, device=DEVICE, dtype=DTYPE).mul_(spec.shape[-1] ** -0.5)
        (outside if spec.layer is None else layers[spec.layer])[spec.field] = weight
    return ModelWeights(layers=tuple(LayerWeights(**layer) for layer in layers), **outside)


def segment_bytes(weights: ModelWeights[torch.Tensor]) -> tuple[int, int]:
    """Weights that a middle and the last segment read."""
    layer = weights.layers[0]
    after_attention = layer.o.nbytes + layer.gate_up.nbytes + layer.down.nbytes
    return after_attention + layer.qkv.nbytes, after_attention + weights.head.nbytes


def kernel_times(make: Callable[[int], Segments], num_tokens: int) -> list[tuple[str, float]]:
    """(kernel, microseconds) in the order in which a middle segment runs them."""
    segments, buffers = make(num_tokens), make_buffers(num_tokens)
    torch.cuda.synchronize()
    graph = capture(lambda: buffers.run_middle(segments), torch.cuda.Stream())  # type: ignore[no-untyped-call]
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        graph.replay()
        torch.cuda.synchronize()
    events = [event for event in profiled.events() or () if event.device_type.name == "CUDA"]
    events.sort(key=lambda event: event.time_range.start)
    num_kernels = len(events) // NUM_MIDDLE
    times: dict[int, list[float]] = defaultdict(list)
    for i, event in enumerate(events):
        times[i % num_kernels].append(event.time_range.elapsed_us())
    return [(events[i].name[:80], statistics.mean(times[i])) for i in range(num_kernels)]


if __name__ == "__main__":
    raise SystemExit(main())
