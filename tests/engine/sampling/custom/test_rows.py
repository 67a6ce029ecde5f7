"""Rows of a batch get what they asked for, in their order, and nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.params import NamedSpec, SamplingParams
from scheduler.step import Finish
from tests.engine.sampling.custom.support import NUM_ROWS, VOCAB, Batch, make_registry, random_logits, spec

REGISTRY = make_registry()
NUMBERS = st.sampled_from([-2.0, 0.5, 1.0, 3.0])
CLASSIC = st.builds(lambda scale, shift: spec("classic", scale=scale, shift=shift), NUMBERS, NUMBERS)
ONE_OF = st.sampled_from(["batched", "second", "eager"])
BATCHED = st.builds(lambda name, scale, shift: spec(name, scale=scale, shift=shift), ONE_OF, NUMBERS, NUMBERS)
PROCESSORS = st.lists(CLASSIC | BATCHED, max_size=4).filter(
    lambda specs: (
        len({each.name for each in specs if each.name != "classic"})
        == sum(each.name != "classic" for each in specs)
    )
)
CRITERIA = st.lists(
    st.builds(
        lambda name, of: spec(name, of=of),
        st.sampled_from(["classic", "tensor", "batched", "second"]),
        st.integers(1, 7),
    ),
    max_size=3,
    unique_by=lambda each: each.name,
)
PARAMS = st.builds(
    lambda processors, criteria, least, most: SamplingParams(
        logits_processors=tuple(processors),
        stopping_criteria=tuple(criteria),
        min_new_tokens=least,
        max_new_tokens=most,
    ),
    PROCESSORS,
    CRITERIA,
    st.integers(0, 2),
    st.integers(2, 4),
)


def expected_scores(params: SamplingParams, tokens: list[int], num_prompt: int, logits: Tensor) -> Tensor:
    """By one row's processors alone, one after the other."""
    shift = tokens[-1] + len(tokens) - num_prompt
    for each in params.logits_processors:
        scale, by = each.parameters["scale"], each.parameters["shift"]
        assert isinstance(scale, float)
        assert isinstance(by, float)
        logits = logits * scale + by * shift
    return logits


def expected_finish(params: SamplingParams, tokens: list[int], num_prompt: int) -> int:
    """tokens: with the newest."""
    num_generated = len(tokens) - num_prompt
    if num_generated >= params.min_new_tokens:
        for index, each in enumerate(params.stopping_criteria):
            of = each.parameters["of"]
            assert isinstance(of, int)
            if (tokens[-1] + len(tokens) + num_generated - 1) % of == 0:
                return Finish.CRITERION + index
    return Finish.LENGTH if num_generated >= (params.max_new_tokens or 1000) else Finish.NONE


@given(
    data=st.data(),
    entered=st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), PARAMS), min_size=1, max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_every_row_gets_what_it_asked_for(
    data: st.DataObject, entered: list[tuple[int, SamplingParams]]
) -> None:
    """Rows are taken over by others in between, and steps hold any of them in any order."""
    batch = Batch(REGISTRY)
    held: dict[int, SamplingParams] = {}
    for number, (row, params) in enumerate(entered):
        prompt = tuple(range(1 + row, 4 + row))
        held[row] = params
        batch.enter(row, params, prompt, generated=(7,) * (number % 2))
        rows = data.draw(st.permutations(sorted(held)))[: 1 + number % len(held)]
        logits = random_logits(len(rows), number)
        wanted = [
            expected_scores(held[row], batch.tokens[row], 3, scores)
            for row, scores in zip(rows, logits, strict=True)
        ]
        sampled = batch.step(rows, logits)
        torch.testing.assert_close(logits, torch.stack(wanted))
        assert sampled.errors == {}
        assert sampled.finishes.tolist() == [expected_finish(held[row], batch.tokens[row], 3) for row in rows]


def test_order_is_that_of_the_request() -> None:
    double, add = spec("batched", scale=2.0), spec("second", shift=1.0)
    batch = Batch()
    batch.enter(0, SamplingParams(logits_processors=(double, add)))
    batch.enter(1, SamplingParams(logits_processors=(add, double)))
    logits, _ = batch.process([0, 1], torch.ones(2, VOCAB))
    assert logits[:, 0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", ["classic", "batched", "eager"])
def test_a_row_does_not_inherit(name: str) -> None:
    batch = Batch()
    params = SamplingParams(
        logits_processors=(spec(name, scale=2.0),), stopping_criteria=(spec("batched", of=1),)
    )
    batch.enter(3, params)
    batch.enter(3, SamplingParams())
    logits = torch.ones(1, VOCAB)
    finishes = batch.step([3], logits).finishes
    assert torch.equal(logits, torch.ones(1, VOCAB))
    assert finishes.tolist() == [Finish.NONE]
    assert not batch.custom.asks([3])
    batch.custom.process_captured(logits, torch.tensor([3]))
    assert torch.equal(logits, torch.ones(1, VOCAB))


@given(
    params=st.lists(PARAMS, min_size=NUM_ROWS, max_size=NUM_ROWS),
    rows=st.permutations(range(NUM_ROWS)),
    num_padded=st.integers(0, 3),
    padding=st.sampled_from([-1, NUM_ROWS]),
)
@settings(max_examples=40, deadline=None)
def test_a_graph_does_what_steps_without_one_do(
    params: list[SamplingParams], rows: list[int], num_padded: int, padding: int
) -> None:
    """Of the rows that do not need to do without; the padding stays as it is."""
    batch = Batch(REGISTRY)
    for row, each in enumerate(params):
        batch.enter(row, each)
    rows = [row for row in rows if not batch.custom.needs_eager([row])]
    padded = torch.tensor(rows + [padding] * num_padded, dtype=torch.int64)
    logits = random_logits(len(padded), 1)
    before = logits.clone()
    eager, _ = batch.process(rows, logits[: len(rows)])
    batch.custom.process_captured(logits, padded)
    assert torch.equal(logits[: len(rows)], eager)
    assert torch.equal(logits[len(rows) :], before[len(rows) :])

    token_ids = torch.arange(len(padded))
    finishes = torch.tensor([Finish.NONE, Finish.LENGTH] * len(padded), dtype=torch.int32)[: len(padded)]
    captured = finishes.clone()
    batch.custom.check(token_ids[: len(rows)], finishes[: len(rows)], torch.tensor(rows).long(), rows)
    batch.custom.check_captured(token_ids.int(), captured, padded.int())
    assert torch.equal(captured, finishes)


def test_what_needs_a_step_without_a_graph() -> None:
    batch = Batch()
    wanted: list[tuple[tuple[NamedSpec, ...], tuple[NamedSpec, ...], bool]] = [
        ((), (), False),
        ((spec("batched"), spec("second")), (spec("batched", of=2),), False),
        ((spec("second"), spec("batched")), (), True),  # a graph has one order
        ((spec("eager"),), (), True),
        ((spec("classic"),), (), True),
        ((), (spec("batched", of=2), spec("classic", of=3)), True),
    ]
    for row, (processors, criteria, _) in enumerate(wanted):
        batch.enter(row, SamplingParams(logits_processors=processors, stopping_criteria=criteria))
    assert [batch.custom.needs_eager([row]) for row in range(6)] == [eager for _, _, eager in wanted]
    assert [batch.custom.asks([row]) for row in range(6)] == [False] + [True] * 5
    assert batch.custom.needs_eager([0, 1, 4])
    assert not batch.custom.needs_eager([1, 0])


def test_criteria_leave_stop_and_error_alone() -> None:
    batch = Batch()
    always = SamplingParams(stopping_criteria=(spec("batched", of=1),))
    for row in range(4):
        batch.enter(row, always)
    rows = torch.arange(4)
    finishes = torch.tensor([Finish.NONE, Finish.STOP, Finish.LENGTH, Finish.ERROR], dtype=torch.int32)
    captured = finishes.clone()
    batch.custom.check(rows, finishes, rows, range(4))
    batch.custom.check_captured(rows, captured, rows)
    expected = [Finish.CRITERION, Finish.STOP, Finish.CRITERION, Finish.ERROR]
    assert finishes.tolist() == captured.tolist() == expected


def test_a_preempted_output_goes_on_where_it_was() -> None:
    params = SamplingParams(
        logits_processors=(spec("classic", shift=0.5), spec("batched", scale=0.5, shift=1.0)),
        stopping_criteria=(spec("classic", of=5), spec("second", of=4)),
    )
    whole, resumed = Batch(), Batch()
    whole.enter(0, params, prompt=(3, 4))
    first = [whole.step([0], random_logits(1, seed)) for seed in range(3)]
    tokens = whole.tokens[0][2:]
    assert len(first) == len(tokens) == 3
    resumed.enter(4, params, prompt=(3, 4), generated=tokens)
    for seed in range(3, 6):
        ours, theirs = random_logits(1, seed), random_logits(1, seed)
        one, other = whole.step([0], ours), resumed.step([4], theirs)
        assert torch.equal(ours, theirs)
        assert one.finishes.tolist() == other.finishes.tolist()


def test_greedy_rows_skip_what_cannot_change_their_token() -> None:
    from tests.engine.sampling.custom.support import BatchedAffine

    class Scaling(BatchedAffine):
        changes_argmax = False

    registry = make_registry()
    registry.add_logits_processor("scaling", Scaling)
    batch = Batch(registry)
    greedy = SamplingParams(logits_processors=(spec("scaling", scale=2.0),))
    batch.enter(0, greedy)
    batch.enter(1, replace(greedy, temperature=1.0, seed=0))
    batch.enter(2, replace(greedy, stopping_criteria=(spec("classic", of=3),)))  # which sees the scores
    batch.enter(3, replace(greedy, stopping_criteria=(spec("batched", of=3),)))
    logits, _ = batch.process([0, 1, 2, 3], torch.ones(4, VOCAB))
    assert logits[:, 0].tolist() == [1.0, 2.0, 2.0, 1.0]
