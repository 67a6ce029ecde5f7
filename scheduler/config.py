"""The scheduler's limits."""

from dataclasses import dataclass

from scheduler.policy import POLICIES


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """max_num_seqs: sequences that hold a row at once. max_num_batched_tokens: token budget of a step, at
    least max_num_seqs, so that no decoding sequence ever waits for it. max_model_len: longest sequence in
    tokens, prompt and output. policy: "fcfs" or "priority" (see policy.py). Raises ValueError."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str = "fcfs"

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ValueError(f"max_num_seqs={self.max_num_seqs}: must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            limit = f"must be at least max_num_seqs={self.max_num_seqs}"
            raise ValueError(f"max_num_batched_tokens={self.max_num_batched_tokens}: {limit}")
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len={self.max_model_len}: must be at least 2, a prompt and an output"
            )
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: must be one of {', '.join(POLICIES)}")
