"""A form of the segments compared with torch's, on the same random inputs."""

import torch

from engine.tensorrt_backend.forms import Segments
from engine.torch_backend.segments import TorchSegments
from tests.support.decoders import Decoder


def assert_computes_the_decoder(
    segments: Segments,
    decoder: Decoder,
    num_tokens: int,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """First, middle and last segment, each with the inputs that the reference has. Outputs start as NaN.

    rtol, atol: of torch.testing.assert_close; None is what it takes for the dtype.
    """
    config, expected = decoder.config, TorchSegments(decoder.config, decoder.weights)
    dtype, device = decoder.weights.embedding.dtype, decoder.weights.embedding.device
    token_ids = torch.randint(config.vocab_size, (num_tokens,), dtype=torch.int32, device=device)
    attended = torch.randn(num_tokens, config.q_size, device=device).to(dtype)

    def outputs(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.full((num_tokens, width), torch.nan, dtype=dtype, device=device)
        return found, found.clone()

    (residual, residual_), (qkv, qkv_) = outputs(config.hidden_size), outputs(config.qkv_size)
    segments.first(token_ids, residual, qkv)
    expected.first(token_ids, residual_, qkv_)
    torch.testing.assert_close((residual, qkv), (residual_, qkv_), rtol=rtol, atol=atol)

    (after, after_), (qkv, qkv_) = outputs(config.hidden_size), outputs(config.qkv_size)
    segments.middle(1, attended, residual, after, qkv)
    expected.middle(1, attended, residual, after_, qkv_)
    torch.testing.assert_close((after, qkv), (after_, qkv_), rtol=rtol, atol=atol)

    logits, logits_ = outputs(config.vocab_size)
    segments.last(attended, after, logits)
    expected.last(attended, after, logits_)
    torch.testing.assert_close(logits, logits_, rtol=rtol, atol=atol)
