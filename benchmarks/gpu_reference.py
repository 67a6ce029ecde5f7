"""The two ceilings of a GPU, measured: how fast it copies, and how fast it multiplies matrices."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.gpu_report import Report
from benchmarks.gpu_timing import COPY_BYTES, copy_bandwidth
from engine.model.config import ModelConfig
from engine.tensorrt_backend.graphs import measure

TOKENS = (512, 2048, 8192)
_SQUARE = 8192
_ROTATED_BYTES = 512 << 20  # of weights read by a graph: many times the L2 cache
_NUM_REPLAYS = 15


@dataclass(frozen=True, slots=True)
class Reference:
    """bandwidth: bytes read and written a second, by a copy. square: FLOP/s of a product of 8192^3, layers:
    of a decoder layer's products by number of tokens; all in bf16 by torch."""

    bandwidth: float
    square: float
    layers: Mapping[int, float]

    def layer_rate(self, num_tokens: int) -> float:
        """FLOP/s of the measured number of tokens that is nearest from below, or of the least."""
        return self.layers[max((n for n in self.layers if n <= num_tokens), default=min(self.layers))]


def measure_reference(config: ModelConfig, device: torch.device, report: Report) -> Reference:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    bandwidth = copy_bandwidth()
    report.line(f"copy of {COPY_BYTES >> 30} GiB: {bandwidth / 1e12:.3f} TB/s, read and written")
    square = _product_rate(_SQUARE, [(_SQUARE, _SQUARE)], device, stream)
    report.line(f"bf16 product of {_SQUARE}^3: {square / 1e12:.0f} TFLOP/s")
    products = layer_products(config)
    rows, layers = [], {}
    for num_tokens in TOKENS:
        rates = [_product_rate(num_tokens, [shape], device, stream) for shape in products.values()]
        layers[num_tokens] = _product_rate(num_tokens, list(products.values()), device, stream)
        rows.append([f"{num_tokens}", *(f"{rate / 1e12:.0f}" for rate in (*rates, layers[num_tokens]))])
    report.line("TFLOP/s of a layer's products by torch, random data")
    report.table(("tokens", *products, "all four"), rows)
    torch.cuda.empty_cache()
    return Reference(bandwidth, square, layers)


def layer_products(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name -> [outputs, inputs] of the weights that every token is multiplied with in a layer."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return {
        "qkv": (config.qkv_size, hidden),
        "o": (hidden, config.q_size),
        "gate_up": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
    }


def _product_rate(
    num_tokens: int, shapes: list[tuple[int, int]], device: torch.device, stream: torch.cuda.Stream
) -> float:
    """FLOP/s of products with weights of these shapes, one after the other, several sets of them in turn."""
    num_weights = sum(outputs * inputs for outputs, inputs in shapes)
    num_sets = max(2, _ROTATED_BYTES // (2 * num_weights))

    def random(num_rows: int, num_columns: int) -> torch.Tensor:
        return torch.randn(num_rows, num_columns, dtype=torch.bfloat16, device=device)

    inputs = {num_columns: random(num_tokens, num_columns) for _, num_columns in shapes}
    weights = [random(*shape) for _ in range(num_sets) for shape in shapes]

    def multiply() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    microseconds = measure(multiply, stream, num_replays=_NUM_REPLAYS)
    return 2e6 * num_tokens * num_weights * num_sets / microseconds
