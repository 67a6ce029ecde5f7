"""What the engine must know of a model to compute it: numbers and switches, whatever file they came from."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1, arXiv:2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding of whole heads, first half paired with second half (the Llama layout)."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of RMSNorm, grouped-query attention with RoPE, and SwiGLU.

    max_model_len: longest sequence in tokens. windows: for each layer, the tokens that a query sees, itself
    included; None sees all. dtype: the checkpoint's own. qk_norm: RMSNorm over each query and key head.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def q_size(self) -> int:
        """Columns of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the keys (or the values) of all heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        return self.q_size + 2 * self.kv_size

    def with_max_model_len(self, max_model_len: int) -> "ModelConfig":
        """For sequences of at most max_model_len tokens; windows that they cannot outgrow are dropped."""
        windows = tuple(None if w is None or w >= max_model_len else w for w in self.windows)
        return replace(self, max_model_len=max_model_len, windows=windows)
