"""Where the time of steps goes. Observed by the engine thread, once a step."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from engine.serving.metrics.histogram import PHASE_BUCKETS, STEP_TOKENS_BUCKETS, Histogram, Histograms
from engine.serving.metrics.specs import Family, Label, Spec, counter, histogram, single
from scheduler.stats import StepStats

_PHASES = ("schedule", "launch", "wait", "update", "output_queue", "detokenize")
_WAITED_SECONDS = 1e-4  # below, the step was there already

STEP_TOKENS = histogram(
    "iteration_tokens_total",
    "tokens",
    "Tokens computed in a step",
    "Always at --max-num-batched-tokens: prompts queue for steps. Always small: little load, or a batch that "
    "the KV cache limits.",
)
STEP_TIME = histogram(
    "step_time_seconds",
    "seconds",
    "From the end of a step to that of the next one, while there is work; `mixed` steps compute chunks of "
    "prompts beside what they decode. The sum is the time in which the engine had work",
    "High `mixed`: chunks are large; lower --max-num-batched-tokens. High `decode`: see step_phase_seconds.",
    (Label("kind", ("decode", "mixed")),),
)
STEP_PHASE = histogram(
    "step_phase_seconds",
    "seconds",
    "Parts of a step: deciding what runs (schedule), handing model and sampling to the device (launch; "
    "where the CPU is the device, it computes them here), waiting for its tokens (wait), taking them in "
    "(update); then, in another thread, until it is their turn (output_queue), and making text of them "
    "(detokenize)",
    "`wait` should be most of it on a GPU. `schedule`, `launch` or `update` high: the host is slow or "
    "shared. `output_queue` rising: making text does not keep up; use fewer stop expressions, or a faster "
    "CPU.",
    (Label("phase", _PHASES),),
)
IDLE = counter(
    "device_idle_seconds",
    "seconds",
    "Time with work in which no step was launched or being launched, so that the device surely had nothing "
    "to do; pauses between steps that were queued on it do not show here",
    "Over a few percent of step_time_seconds on a GPU: the host is too slow; see step_phase_seconds.",
)
NOT_WAITED = counter(
    "steps_not_waited_for",
    "steps",
    "Steps whose tokens were there when the host asked (within 0.1 ms): the device was done sooner than the "
    "host, and may have stood still",
    "On a GPU a large share of engine_steps: the host limits the speed. On a CPU it is all of them.",
)
PADDING = counter(
    "padding_tokens",
    "tokens",
    "Tokens that steps computed only to fill their bucket; none with the torch backend",
    "A large share beside computed_tokens: bucket sizes do not suit the load.",
)
UNGRAPHED = counter(
    "ungraphed_steps",
    "steps",
    "Steps without prompt chunks whose sampling ran outside of their graph, as grammars and some custom "
    "processors need it; none with the torch backend",
    "A large share of engine_steps, with a high `launch` phase: guided or custom requests slow all others.",
)
SPECS: tuple[Spec, ...] = (STEP_TOKENS, STEP_TIME, STEP_PHASE, IDLE, NOT_WAITED, PADDING, UNGRAPHED)


@runtime_checkable
class CountsBuckets(Protocol):
    """A runner whose steps have static shapes."""

    num_padding_tokens: int
    num_ungraphed_steps: int


class StepMetrics:
    """runner: whatever runs the steps."""

    def __init__(self, runner: object = None) -> None:
        self._runner = runner if isinstance(runner, CountsBuckets) else None
        self._tokens = Histogram(STEP_TOKENS_BUCKETS)
        self._times = Histograms(STEP_TIME, PHASE_BUCKETS)
        self._decode, self._mixed = self._times["decode"], self._times["mixed"]
        self._phases = Histograms(STEP_PHASE, PHASE_BUCKETS)
        self._schedule, self._launch, self._wait, self._update, self._queue, self._text = (
            self._phases[phase] for phase in _PHASES
        )
        self._idle_seconds = 0.0
        self._num_not_waited = 0

    def observe(self, step: StepStats) -> None:
        """A step that has been read. Engine thread."""
        self._tokens.observe(step.num_decode_rows + step.num_chunk_tokens)
        (self._mixed if step.num_chunk_tokens else self._decode).observe(step.interval_seconds)
        self._schedule.observe(step.schedule_seconds)
        self._launch.observe(step.launch_seconds)
        self._wait.observe(step.wait_seconds)
        self._update.observe(step.update_seconds)
        self._idle_seconds += step.idle_seconds
        self._num_not_waited += step.wait_seconds < _WAITED_SECONDS

    def observe_outputs(self, queue_seconds: float, text_seconds: float) -> None:
        """What became of a step's outputs. Output thread."""
        self._queue.observe(queue_seconds)
        self._text.observe(text_seconds)

    def families(self) -> Iterator[Family]:
        runner = self._runner
        yield single(STEP_TOKENS, self._tokens.snapshot())
        yield self._times.family()
        yield self._phases.family()
        yield single(IDLE, self._idle_seconds)
        yield single(NOT_WAITED, self._num_not_waited)
        yield single(PADDING, runner.num_padding_tokens if runner is not None else 0)
        yield single(UNGRAPHED, runner.num_ungraphed_steps if runner is not None else 0)
