"""Which sequences run in the next step, and the loop that drives steps."""

from scheduler.beams import BeamParams
from scheduler.config import SchedulerConfig
from scheduler.errors import FatalStepError
from scheduler.loop import StepLoop
from scheduler.request import FinishReason, Request, RequestTimes, SequenceOutput, SequenceSummary
from scheduler.scheduler import Scheduler
from scheduler.stats import FailureReason, PreemptionReason, SchedulerStats, StepStats
from scheduler.step import (
    Chunk,
    Finish,
    NewBlocks,
    NewRow,
    PendingStep,
    Runner,
    StepInput,
    StepOutput,
)

__all__ = [
    "BeamParams",
    "Chunk",
    "FailureReason",
    "FatalStepError",
    "Finish",
    "FinishReason",
    "NewBlocks",
    "NewRow",
    "PendingStep",
    "PreemptionReason",
    "Request",
    "RequestTimes",
    "Runner",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "SequenceOutput",
    "SequenceSummary",
    "StepInput",
    "StepLoop",
    "StepOutput",
    "StepStats",
]
