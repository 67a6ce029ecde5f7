"""Matrix products with own kernels between them against the decoder's definition, in the interpreter."""

import pytest
import torch

from engine.blas.kernels import add_norm
from engine.blas.segments import BlasScratch, BlasSegments
from tests.support.decoders import Decoder, model_config, random_decoder
from tests.support.segment_checks import assert_computes_the_decoder

CPU = torch.device("cpu")
MAX_NUM_TOKENS = 9


@pytest.fixture(scope="module", params=["llama-biases", "qwen2", "qwen3", "llama3.1-tied"])
def tiny(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(model_config(request.param), torch.float32, "cpu")


def test_segments_compute_the_decoder(tiny: Decoder) -> None:
    """One scratch memory for all sizes, so that each finds what another left."""
    scratch = BlasScratch(tiny.config, MAX_NUM_TOKENS, device=CPU, dtype=torch.float32)
    segments = BlasSegments(tiny.config, tiny.weights, scratch)
    for num_tokens in (MAX_NUM_TOKENS, 1, 4):
        assert_computes_the_decoder(segments, tiny, num_tokens)


def test_the_norm_sees_the_residual_stream_as_it_is_kept() -> None:
    """Rounded to 16 bits: 2049 is 2048 there, and the stream goes on from that."""
    x, residual = torch.full((1, 3), 1.0).half(), torch.full((1, 3), 2048.0).half()
    out, normed = torch.empty_like(x), torch.empty_like(x)
    add_norm(x, residual, torch.ones(3).half(), 1e-6, out, normed)
    assert out.tolist() == [[2048.0] * 3]
    assert normed.tolist() == [[1.0] * 3]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1e-4, 1e-4), (torch.bfloat16, 2e-2, 5e-2)]
)
def test_on_a_gpu(dtype: torch.dtype, rtol: float, atol: float) -> None:
    """bfloat16 is rounded at fewer places than torch rounds at."""
    decoder = random_decoder(model_config("qwen3"), dtype, "cuda")
    scratch = BlasScratch(decoder.config, 300, device=torch.device("cuda"), dtype=dtype)
    segments = BlasSegments(decoder.config, decoder.weights, scratch)
    assert_computes_the_decoder(segments, decoder, 300, rtol=rtol, atol=atol)
