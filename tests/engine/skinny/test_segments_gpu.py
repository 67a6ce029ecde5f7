"""Own kernels on a GPU: compiled, at real sizes, in CUDA graphs."""

from dataclasses import replace

import pytest
import torch

from engine.model.config import ModelConfig, RopeConfig
from engine.skinny.scratch import SkinnyScratch
from engine.skinny.segments import SkinnySegments
from engine.tensorrt_backend.forms import Segments
from engine.torch_backend.segments import TorchSegments
from tests.support.decoders import Decoder, converted, random_decoder

pytestmark = pytest.mark.gpu


def with_everything(config: ModelConfig) -> ModelConfig:
    return replace(config, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)


LARGE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=8190,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_model_len=1024,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    windows=(None, None),
)
SMALL = replace(LARGE, hidden_size=1024, intermediate_size=3072, num_heads=16, vocab_size=151)
ODD = replace(
    LARGE, hidden_size=136, intermediate_size=1100, num_heads=9, num_kv_heads=3, head_dim=20, vocab_size=131
)
# Kernels are compiled for each power of two of tokens, from 16 to 128: each case has some.
CASES = {
    "large bf16": (LARGE, torch.bfloat16, (1, 128)),
    "small fp16": (with_everything(SMALL), torch.float16, (16, 32)),
    "odd fp32": (with_everything(ODD), torch.float32, (7, 128)),
    "odd bf16": (ODD, torch.bfloat16, (50,)),
}
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Of a name of CASES."""
    config, dtype, _ = CASES[request.param]
    return random_decoder(config, dtype, "cuda")


@pytest.fixture(scope="module")
def scratch(decoder: Decoder) -> SkinnyScratch:
    weight = decoder.weights.head
    return SkinnyScratch(decoder.config, 128, device=weight.device, dtype=weight.dtype)


class Buffers:
    """Inputs of all segments, random, and their outputs, NaN."""

    def __init__(self, config: ModelConfig, num_tokens: int, dtype: torch.dtype) -> None:
        def empty(width: int) -> torch.Tensor:
            return torch.full((num_tokens, width), torch.nan, device="cuda", dtype=dtype)

        self.token_ids = torch.zeros(num_tokens, device="cuda", dtype=torch.int32)
        self.attended = empty(config.q_size)
        self.outputs = [empty(config.hidden_size) for _ in range(2)]
        self.outputs += [empty(config.qkv_size) for _ in range(2)] + [empty(config.vocab_size)]
        self.vocab_size = config.vocab_size

    def draw(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.token_ids.random_(self.vocab_size)
        self.attended.normal_()

    def run(self, segments: Segments) -> None:
        residual, residual_after, first_qkv, qkv, logits = self.outputs
        segments.first(self.token_ids, residual, first_qkv)
        segments.middle(1, self.attended, residual, residual_after, qkv)
        segments.last(self.attended, residual_after, logits)


@pytest.mark.parametrize(
    ("decoder", "num_tokens"),
    [(name, num_tokens) for name, case in CASES.items() for num_tokens in case[2]],
    indirect=["decoder"],
)
def test_graph_computes_the_decoder(decoder: Decoder, scratch: SkinnyScratch, num_tokens: int) -> None:
    config, dtype = decoder.config, decoder.weights.head.dtype
    segments = SkinnySegments(config, decoder.weights, num_tokens, scratch)
    buffers = Buffers(config, num_tokens, dtype)
    buffers.draw(0)
    buffers.run(segments)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        buffers.run(segments)
    expected = Buffers(config, num_tokens, torch.float32)
    reference = converted(decoder, torch.float32)
    for seed in (1, 2):
        buffers.draw(seed)
        for output in buffers.outputs:
            output.fill_(torch.nan)
        graph.replay()
        expected.token_ids.copy_(buffers.token_ids)
        expected.attended.copy_(buffers.attended)
        expected.run(TorchSegments(config, reference.weights))
        for output, exact in zip(buffers.outputs, expected.outputs, strict=True):
            error = (output.float() - exact).norm() / exact.norm()
            assert error < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("decoder", "num_tokens"), [(name, case[2][-1]) for name, case in CASES.items()], indirect=["decoder"]
)
def test_replays_are_bitwise_equal(decoder: Decoder, scratch: SkinnyScratch, num_tokens: int) -> None:
    """Whichever program arrives last."""
    segments = SkinnySegments(decoder.config, decoder.weights, num_tokens, scratch)
    buffers = Buffers(decoder.config, num_tokens, decoder.weights.head.dtype)
    buffers.draw(0)
    buffers.run(segments)
    first = [output.clone() for output in buffers.outputs]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            buffers.run(segments)
    for _ in range(50):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(buffers.outputs, first, strict=True))
