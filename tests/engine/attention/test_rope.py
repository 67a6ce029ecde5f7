"""RoPE against transformers' own functions."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from engine.attention.rope import inverse_frequencies, rotate, rotation
from engine.model.huggingface import parse_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.5}, LLAMA3],
    ids=lambda rope: rope["rope_type"],
)
def test_rotation(rope: dict[str, object], head_dim: int) -> None:
    theirs = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        num_attention_heads=4,
        hidden_size=4 * head_dim,
        rope_parameters={"rope_theta": 500_000.0, **rope},
    )
    ours = parse_config(theirs.to_dict(), {})
    positions = torch.tensor([0, 1, 17, 500, 8191, 100_000])
    x = torch.randn(len(positions), 4, head_dim)
    embedding = LlamaRotaryEmbedding(theirs)
    cos, sin = embedding(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    frequencies = inverse_frequencies(ours.rope, head_dim)
    torch.testing.assert_close(frequencies, embedding.inv_freq, rtol=1e-6, atol=0)
    rotated = rotate(x, rotation(positions, embedding.inv_freq))
    torch.testing.assert_close(rotated, expected[0].transpose(0, 1), rtol=0, atol=1e-6)
