"""A tokenizer of bytes, and a device that continues every byte with the next one: "a" with "bcdef…"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from engine.sampling.params import SamplingParams
from engine.text.byte_level import spelled_bytes
from engine.text.tokenizer import Tokenizer
from scheduler.step import Finish, NewRow, StepInput, StepOutput

EOS = 256  # ids below are bytes
LONG = 257  # a token of several characters, generated only if a runner's successor says so
LONG_TEXT = "one<stop>two"
VOCAB_SIZE = 258


def byte_tokenizer() -> Tokenizer:
    """Token id = byte; EOS is special, its text is "<eos>"."""
    vocabulary = {character: spelled_bytes(character)[0] for character in pre_tokenizers.ByteLevel.alphabet()}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken("<eos>", special=True)])
    backend.add_tokens([LONG_TEXT])
    return Tokenizer(backend, backend.to_str().encode())


def next_byte(token_id: int) -> int:
    return (token_id + 1) % 256


@dataclass(frozen=True, slots=True)
class _Launched:
    output: StepOutput

    def result(self) -> StepOutput:
        return self.output


@dataclass(slots=True)
class _Row:
    new: NewRow
    sampling: SamplingParams
    last_token: int
    num_generated: int


@dataclass(slots=True)
class FakeRunner:
    """A device without arithmetic: scheduler.step.Runner.

    successor: the token after a token. before_step: called when a step is launched; may block, or raise.
    """

    successor: Callable[[int], int] = next_byte
    before_step: Callable[[StepInput], None] = lambda step: None
    max_steps_in_flight: int = 1
    num_steps: int = 0
    _rows: dict[int, _Row] = field(default_factory=dict)

    def launch(self, step: StepInput) -> _Launched:
        for new in step.new_rows:
            assert isinstance(new.sampling, SamplingParams)
            self._rows[new.row] = _Row(new, new.sampling, -1, new.num_generated_tokens)
        for chunk in step.chunks:
            self._rows[chunk.row].last_token = chunk.token_ids[-1]
        self.num_steps += 1
        self.before_step(step)
        rows = [*step.decode_rows, *(chunk.row for chunk in step.chunks if chunk.samples)]
        sampled = [self._sample(self._rows[row]) for row in rows]
        token_ids, finishes = [token for token, _ in sampled], [int(finish) for _, finish in sampled]
        return _Launched(StepOutput(step.step_id, token_ids, finishes))

    def _sample(self, row: _Row) -> tuple[int, Finish]:
        stops: Sequence[int] = (*row.sampling.stop_token_ids, *(() if row.sampling.ignore_eos else (EOS,)))
        token_id = self.successor(row.last_token)
        while token_id in stops and row.num_generated < row.sampling.min_new_tokens:
            token_id = next_byte(token_id)
        row.last_token = token_id
        row.num_generated += 1
        if token_id in stops:
            return token_id, Finish.STOP
        return token_id, Finish.LENGTH if row.num_generated == row.new.max_new_tokens else Finish.NONE
