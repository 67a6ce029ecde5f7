"""Logits processors and stopping criteria of plugins, which requests name. README.md is their guide."""

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.interfaces import (
    BatchedLogitsProcessor,
    BatchedStoppingCriteria,
    LogitsProcessor,
    StoppingCriteria,
)
from engine.sampling.custom.parameters import Limits, NoParameters, TokenId
from engine.sampling.custom.plugins import build_registry
from engine.sampling.custom.registry import Description, Kind, Registry
from engine.sampling.custom.rows import CustomRows

__all__ = [
    "BatchedLogitsProcessor",
    "BatchedStoppingCriteria",
    "CustomRows",
    "Description",
    "Kind",
    "Limits",
    "LogitsProcessor",
    "NoParameters",
    "Registry",
    "RowContext",
    "RowTokens",
    "StoppingCriteria",
    "TokenId",
    "build_registry",
]
