"""The decoder, written once over the vocabulary of `ops`, as segments cut at attention.

    embed, before_attention of layer 0                          (attention 0)
    after_attention of layer i - 1, before_attention of layer i (attention i), for each further layer
    after_attention of the last layer, final_norm
    head, on the rows that sample

RoPE, the KV cache and attention lie between the segments, so nothing here knows about sequences or
positions: N packed tokens go in, N come out. Every function takes the backend's words (`ops`) first, then
the numbers, then one record of weights.
"""

from engine.model.config import ModelConfig
from engine.model.ops import Ops, TensorT
from engine.model.weights import LayerWeights, ModelWeights


def embed(ops: Ops[TensorT], weights: ModelWeights[TensorT], token_ids: TensorT) -> TensorT:
    """[N] -> the residual stream [N, hidden]."""
    return ops.embedding(token_ids, weights.embedding)


def before_attention(
    ops: Ops[TensorT], config: ModelConfig, layer: LayerWeights[TensorT], residual: TensorT
) -> TensorT:
    """[N, hidden] -> [N, q_size + 2 * kv_size]: the queries of all heads, their keys, their values."""
    x = ops.rms_norm(residual, layer.input_norm, config.rms_norm_eps)
    qkv = ops.linear(x, layer.qkv, layer.qkv_bias)
    if layer.q_norm is None or layer.k_norm is None:
        return qkv
    q, k, v = ops.split(qkv, (config.q_size, config.kv_size, config.kv_size))
    q = ops.rms_norm(q, layer.q_norm, config.rms_norm_eps)
    k = ops.rms_norm(k, layer.k_norm, config.rms_norm_eps)
    return ops.concat((q, k, v))


def after_attention(
    ops: Ops[TensorT],
    config: ModelConfig,
    layer: LayerWeights[TensorT],
    attended: TensorT,
    residual: TensorT,
) -> TensorT:
    """Attended values [N, q_size] and the residual stream [N, hidden] -> the residual stream [N, hidden]."""
    residual = ops.add(residual, ops.linear(attended, layer.o, layer.o_bias))
    x = ops.rms_norm(residual, layer.post_attention_norm, config.rms_norm_eps)
    x = ops.swiglu(x, layer.gate_up, layer.gate_up_bias)
    return ops.add(residual, ops.linear(x, layer.down, layer.down_bias))


def final_norm(
    ops: Ops[TensorT], config: ModelConfig, weights: ModelWeights[TensorT], residual: TensorT
) -> TensorT:
    """[N, hidden] -> [N, hidden]."""
    return ops.rms_norm(residual, weights.final_norm, config.rms_norm_eps)


def head(ops: Ops[TensorT], weights: ModelWeights[TensorT], hidden: TensorT) -> TensorT:
    """[n, hidden] of the rows that sample -> logits [n, vocab]."""
    return ops.linear(hidden, weights.head, None)
