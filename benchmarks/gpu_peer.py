"""What the peer does with the same shape on the same kind of GPU, and what we aim at.

vLLM 0.24.0 on an H200: bf16, FlashAttention 3, torch.compile, full CUDA graphs, its defaults, prefix caching
off.
"""

from collections.abc import Mapping

NAME = "vLLM 0.24.0"
DECODE_MS: Mapping[int, float] = {1: 4.94, 8: 4.94, 64: 5.98, 256: 10.80}  # a step, 128 + 128 tokens
PREFILL_MS: Mapping[int, float] = {1: 10.5, 8: 38.4, 64: 190.0, 256: 751.0}  # of batch x 128 tokens
GREEDY_TOKENS_PER_SECOND = 10_250.0  # 512 requests of 512 + 256 tokens at once
SAMPLED_TOKENS_PER_SECOND = 10_000.0  # temperature 0.8, top-p 0.95, top-k 50
FIRST_TOKEN_SECONDS = 67.0  # of a start, after IMPORT_SECONDS
IMPORT_SECONDS = 17.0

AIM_OF_PEER: Mapping[int, float] = {1: 0.95, 8: 0.95, 64: 0.9, 256: 0.8}  # share of its decode step
AIM_OF_FLOOR = 1.35  # decode step at batch 64
AIM_OF_PRODUCTS = 0.75  # prefill of 2048 tokens, share of the rate of matrix products
AIM_TOKENS_PER_SECOND = 11_500.0
AIM_SAMPLING_COST = 0.03
AIM_IDLE = 0.03  # of a step at batch 64
AIM_COLD_SECONDS = 60.0
AIM_WARM_SECONDS = 20.0
