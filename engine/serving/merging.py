"""Many deltas of one output, as one."""

from dataclasses import dataclass, field

from engine.serving.types import OutputDelta, OutputFinish, Timings, TokenLogprob, Usage


@dataclass(slots=True)
class MergedDelta:
    """Deltas of one output. Text stays in parts until it is taken: joined once, merging is linear."""

    output_index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: OutputFinish | None = None
    usage: Usage | None = None
    timings: Timings | None = None

    def merge(self, delta: OutputDelta) -> None:
        if delta.text:
            self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.finish, self.usage, self.timings = delta.finish, delta.usage, delta.timings

    def to_delta(self) -> OutputDelta:
        return OutputDelta(
            self.output_index,
            "".join(self.texts),
            tuple(self.token_ids),
            self.finish,
            self.usage,
            self.timings,
            tuple(self.logprobs),
            tuple(self.prompt_logprobs),
        )
