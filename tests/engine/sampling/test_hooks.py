"""What processors and criteria of requests see, and what their answers do."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from engine.sampling.params import NamedSpec, SamplingParams
from engine.sampling.rows import Column, RowState
from engine.sampling.sampler import Sampled, Sampler
from scheduler.step import Finish, NewRow

CPU = torch.device("cpu")
VOCAB_SIZE, MAX_MODEL_LEN, NUM_ROWS, EOS = 20, 16, 6, 2


class Rows:
    """Rows named "add" get 50 on their last token plus one; "break" fails; "stop on" ends by a criterion on a
    token, and "break on" fails there."""

    def __init__(self, state: RowState) -> None:
        self._state = state
        self._specs: dict[int, NamedSpec | None] = {}

    def set_rows(self, new_rows: Sequence[NewRow]) -> None:
        for new_row in new_rows:
            params = new_row.sampling
            assert isinstance(params, SamplingParams)
            specs = (*params.logits_processors, *params.stopping_criteria, None)
            self._specs[new_row.row] = specs[0]

    def process(self, logits: Tensor, rows: Tensor, host_rows: Sequence[int]) -> Mapping[int, str]:
        errors = {}
        for index, spec in self._of(host_rows, "add"):
            assert logits[index].max() == spec.parameters["largest"]
            logits[index, self._last(host_rows[index]) + 1] += 50
        for index, _ in self._of(host_rows, "break"):
            logits[index] = torch.nan
            errors[index] = f"broken in row {host_rows[index]}"
        return errors

    def check(
        self, token_ids: Tensor, finishes: Tensor, rows: Tensor, host_rows: Sequence[int]
    ) -> Mapping[int, str]:
        for index, spec in self._of(host_rows, "stop on"):
            assert self._last(host_rows[index]) == token_ids[index]
            if token_ids[index] == spec.parameters["token"]:
                finishes[index] = Finish.CRITERION + 1
        return {
            index: "broken"
            for index, spec in self._of(host_rows, "break on")
            if token_ids[index] == spec.parameters["token"]
        }

    def _of(self, host_rows: Sequence[int], name: str) -> list[tuple[int, NamedSpec]]:
        specs = ((index, self._specs[row]) for index, row in enumerate(host_rows))
        return [(index, spec) for index, spec in specs if spec is not None and spec.name == name]

    def _last(self, row: int) -> int:
        """A row's last token, of those that the device keeps."""
        state = self._state.packed[row]
        length = int(state[Column.NUM_PROMPT] + state[Column.NUM_GENERATED])
        return int(self._state.tables.history[row, length - 1])


def processor(name: str, **parameters: object) -> SamplingParams:
    return SamplingParams(logits_processors=(NamedSpec(name, parameters),), logit_bias=((0, 7.0),))


def criterion(name: str, token: int) -> SamplingParams:
    return SamplingParams(stopping_criteria=(NamedSpec(name, {"token": token}),))


def sample(params: Sequence[SamplingParams], largest: int, limit: int = 100) -> Sampled:
    return stepper(params, largest, limit)()


def stepper(params: Sequence[SamplingParams], largest: int, limit: int) -> Callable[[], Sampled]:
    state = RowState(NUM_ROWS, VOCAB_SIZE, MAX_MODEL_LEN, (EOS,), CPU)
    sampler = Sampler(NUM_ROWS, VOCAB_SIZE, MAX_MODEL_LEN, (EOS,), CPU, custom=Rows(state), state=state)
    host_rows = list(range(len(params)))[::-1]
    sampler.set_rows(
        [NewRow(row, 1, 0, 0, (), limit, each, 0, (10,)) for row, each in zip(host_rows, params, strict=True)]
    )

    def step() -> Sampled:
        logits = torch.zeros(len(params), VOCAB_SIZE)
        logits[:, largest] = 1.0
        return sampler.sample(logits, torch.tensor(host_rows), host_rows)

    return step


def test_processors_see_processed_logits_and_the_tokens_so_far() -> None:
    step = stepper([processor("add", largest=7.0), SamplingParams()], largest=4, limit=3)
    steps = [step() for _ in range(3)]
    assert [sampled.token_ids.tolist() for sampled in steps] == [[11, 4], [12, 4], [13, 4]]
    assert steps[-1].finishes.tolist() == [Finish.LENGTH, Finish.LENGTH]


def test_a_row_whose_processor_fails_ends_alone() -> None:
    sampled = sample([SamplingParams(), processor("break"), SamplingParams()], largest=4)
    assert sampled.finishes.tolist() == [Finish.NONE, Finish.ERROR, Finish.NONE]
    assert sampled.errors == {1: "broken in row 1"}
    assert sampled.token_ids[[0, 2]].tolist() == [4, 4]


def test_criteria_see_the_token_that_was_drawn() -> None:
    params = [criterion("stop on", 4), criterion("stop on", 5), criterion("break on", 4)]
    sampled = sample(params, largest=4)
    assert sampled.finishes.tolist() == [Finish.CRITERION + 1, Finish.NONE, Finish.ERROR]
    assert sampled.errors == {2: "broken"}


def test_without_custom_rows_there_are_no_errors() -> None:
    sampler = Sampler(1, VOCAB_SIZE, MAX_MODEL_LEN, (EOS,), CPU)
    sampler.set_rows([NewRow(0, 1, 0, 0, (), 9, SamplingParams(), 0, (10,))])
    assert sampler.sample(torch.zeros(1, VOCAB_SIZE), torch.tensor([0]), [0]).errors == {}
