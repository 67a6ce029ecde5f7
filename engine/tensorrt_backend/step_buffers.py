"""The tensors of a step. One set serves all buckets, which are cut from its front: steps run one by one."""

from dataclasses import dataclass, fields

import torch

from engine.loading import LoadedModel
from engine.sampling.report import REPORT_WIDTH


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """N: tokens, n: rows that sample. Integers are int32, the others of the model's dtype.

    decode_rows, positions, token_ids: of steps that only decode; rows are kept from one to the next.
    last_attended, last_residual: of the tokens that sample, where others do not. out: token ids, then finish
    codes. report: see engine.sampling.report.
    """

    decode_rows: torch.Tensor  # [n], -1 in padding
    positions: torch.Tensor  # [n]
    token_ids: torch.Tensor  # [n]
    residuals: tuple[torch.Tensor, torch.Tensor]  # [N, hidden]
    qkv: torch.Tensor  # [N, qkv_size]
    attended: torch.Tensor  # [N, q_size]
    last_attended: torch.Tensor  # [n, q_size]
    last_residual: torch.Tensor  # [n, hidden]
    logits: torch.Tensor  # [n, vocab]
    out: torch.Tensor  # [2 * n]
    report: torch.Tensor  # [n, REPORT_WIDTH]

    @property
    def num_bytes(self) -> int:
        held = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor.nbytes for tensor in (*held[:3], *self.residuals, *held[4:]))

    def output(self, num_samples: int) -> torch.Tensor:
        """[2, num_samples], contiguous."""
        return self.out[: 2 * num_samples].view(2, num_samples)


def allocate(model: LoadedModel, max_num_tokens: int, max_num_samples: int) -> StepBuffers:
    """For buckets of at most so many tokens, and rows that sample."""
    config = model.config

    def integers(size: int) -> torch.Tensor:
        return torch.full((size,), -1, dtype=torch.int32, device=model.device)

    def matrix(num_rows: int, num_columns: int) -> torch.Tensor:
        # Zeros: padding is computed like everything else, and should not be made of NaN.
        return torch.zeros((num_rows, num_columns), dtype=model.dtype, device=model.device)

    n_tokens, n_samples = max_num_tokens, max_num_samples
    return StepBuffers(
        decode_rows=integers(n_samples),
        positions=integers(n_samples),
        token_ids=torch.zeros(n_samples, dtype=torch.int32, device=model.device),
        residuals=(matrix(n_tokens, config.hidden_size), matrix(n_tokens, config.hidden_size)),
        qkv=matrix(n_tokens, config.qkv_size),
        attended=matrix(n_tokens, config.q_size),
        last_attended=matrix(n_samples, config.q_size),
        last_residual=matrix(n_samples, config.hidden_size),
        logits=matrix(n_samples, config.vocab_size),
        out=torch.zeros(2 * n_samples, dtype=torch.int32, device=model.device),
        report=torch.zeros((n_samples, REPORT_WIDTH), dtype=torch.int32, device=model.device),
    )
