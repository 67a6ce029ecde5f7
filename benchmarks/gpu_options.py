"""The engine's options in the GPU benchmarks."""

from pathlib import Path

from engine.config import EngineOptions

MAX_NUM_SEQS = 512
TOKEN_BUDGET = 1024
MAX_MODEL_LEN = 16384


def engine_options(
    model_dir: Path, plan_dir: Path, max_num_batched_tokens: int = TOKEN_BUDGET
) -> EngineOptions:
    return EngineOptions(
        model_dir,
        device="cuda",
        backend="tensorrt",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=max_num_batched_tokens,
        plan_dir=plan_dir,
    )
