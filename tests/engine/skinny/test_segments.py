"""Own kernels against the decoder's definition, in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from engine.model.config import ModelConfig, RopeConfig
from engine.skinny.scratch import SkinnyScratch
from engine.skinny.segments import SkinnySegments
from tests.support.decoders import Decoder, random_decoder
from tests.support.segment_checks import assert_computes_the_decoder

ODD = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=130,
    hidden_size=80,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=20,
    max_model_len=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    windows=(None, None),
)
CONFIGS = {
    "llama": ODD,
    "llama with biases": replace(ODD, qkv_bias=True, o_bias=True, mlp_bias=True),
    "qwen2, tied": replace(ODD, qkv_bias=True, tie_word_embeddings=True),
    "qwen3": replace(ODD, qk_norm=True),
    "split in parts": replace(ODD, hidden_size=264, intermediate_size=1100, num_heads=9, num_kv_heads=3),
}
MAX_NUM_TOKENS = 33


@pytest.fixture(scope="module", params=list(CONFIGS.values()), ids=list(CONFIGS))
def tiny(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(request.param, torch.float32, "cpu")


@pytest.fixture(scope="module")
def scratch(tiny: Decoder) -> SkinnyScratch:
    """Shared by all numbers of tokens, so that each finds what another left."""
    return SkinnyScratch(tiny.config, MAX_NUM_TOKENS, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 5, 16, MAX_NUM_TOKENS])
def test_segments_compute_the_decoder(tiny: Decoder, scratch: SkinnyScratch, num_tokens: int) -> None:
    segments = SkinnySegments(tiny.config, tiny.weights, num_tokens, scratch)
    assert_computes_the_decoder(segments, tiny, num_tokens)


def test_number_of_tokens_is_static(tiny: Decoder, scratch: SkinnyScratch) -> None:
    segments = SkinnySegments(tiny.config, tiny.weights, 2, scratch)
    x = torch.zeros(3, tiny.config.q_size)
    with pytest.raises(AssertionError):
        segments.last(x, x, x)
