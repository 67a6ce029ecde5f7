"""Processors and criteria that every server has. All are batched and can be captured in a CUDA graph."""

from engine.sampling.custom.end_bias import EndBias
from engine.sampling.custom.registry import Registry
from engine.sampling.custom.repetition import RepetitionStop
from engine.sampling.custom.sequences import TokenSequences
from engine.sampling.custom.suppress import SuppressUntil


def register_builtin(registry: Registry) -> None:
    registry.add_logits_processor("end_bias", EndBias)
    registry.add_logits_processor("suppress_until", SuppressUntil)
    registry.add_stopping_criterion("repetition", RepetitionStop)
    registry.add_stopping_criterion("token_sequences", TokenSequences)
