"""Requests that name processors and criteria: built-in ones, which graphs hold, and a classic one."""

from pathlib import Path

from engine.sampling.params import NamedSpec, SamplingParams

_PLUGIN = """
from torch import Tensor

from engine.sampling.custom import LogitsProcessor, Registry


class OddOnly(LogitsProcessor):
    def __init__(self, parameters: object) -> None:
        pass

    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, ::2] = float("-inf")
        return scores


def register(registry: Registry) -> None:
    registry.add_logits_processor("odd_only", OddOnly)
"""

# For four prompts: a captured processor, a captured criterion (any token ends it), a classic one, and none.
CUSTOM_WISHES = [
    SamplingParams(
        ignore_eos=True,
        logits_processors=(
            NamedSpec("suppress_until", {"token_ids": list(range(0, 128, 3)), "num_tokens": 4}),
        ),
    ),
    SamplingParams(
        ignore_eos=True,
        min_new_tokens=3,
        allowed_token_ids=tuple(range(40, 56)),
        stopping_criteria=(NamedSpec("token_sequences", {"sequences": [[id_] for id_ in range(40, 56)]}),),
    ),
    SamplingParams(ignore_eos=True, logits_processors=(NamedSpec("odd_only"),)),
    SamplingParams(ignore_eos=True),
]


def write_plugin(directory: Path) -> str:
    path = directory / "odd_only.py"
    path.write_text(_PLUGIN)
    return str(path)
