"""The plan: times, lengths, prompts, behaviours, from a seed and nothing else."""

import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import median, pstdev

import pytest

from benchmarks.loadtest.arrivals import ArrivalKind, Arrivals, due_times
from benchmarks.loadtest.dataset import DatasetRow, read_dataset, timestamps
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.schedule import Plan, make_plan
from benchmarks.loadtest.workload import Behaviour, Workload, parse_behaviour, parse_sampling

NUM = 4000


def _times(kind: ArrivalKind, **options: float) -> list[float]:
    times = due_times(Arrivals(kind, rate=20.0, **options), NUM, seed=3)  # type: ignore[arg-type]
    assert all(time is not None for time in times)
    return [time for time in times if time is not None]


def _variation(times: list[float]) -> float:
    """Coefficient of variation of the gaps: 1 for a Poisson process."""
    gaps = [after - before for before, after in pairwise(times)]
    return pstdev(gaps) / (sum(gaps) / len(gaps))


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5), ("constant", 1.0, 0.0)],
)
def test_rate_and_burstiness_are_what_was_asked_for(
    kind: ArrivalKind, burstiness: float, variation: float
) -> None:
    times = _times(kind, burstiness=burstiness)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(NUM / 20.0, rel=1e-3)
    assert _variation(times) == pytest.approx(variation, rel=0.1, abs=1e-6)


def test_a_ramp_goes_from_one_rate_to_the_other() -> None:
    times = _times("ramp", rate_end=60.0)
    duration = NUM / 40.0
    assert times[-1] == pytest.approx(duration)
    first = sum(time < duration / 10 for time in times)
    last = sum(time > duration * 9 / 10 for time in times)
    assert first / (duration / 10) == pytest.approx(22.0, rel=0.1)
    assert last / (duration / 10) == pytest.approx(58.0, rel=0.1)


def test_a_ramp_between_equal_rates_is_poisson() -> None:
    assert _times("ramp", rate_end=20.0) == pytest.approx(_times("poisson"))


def test_another_rate_stretches_the_same_pattern() -> None:
    slow = due_times(Arrivals("poisson", rate=2.0), 50, seed=1)
    fast = due_times(Arrivals("poisson", rate=8.0), 50, seed=1)
    assert [time and time / 4 for time in slow] == pytest.approx(fast)


def _plan(num_requests: int = 60, *, seed: int = 7, **workload: object) -> Plan:
    fields: dict[str, object] = {
        "prompt": parse_lengths("--prompt-tokens", "lognormal:50:0.5"),
        "output": parse_lengths("--output-tokens", "uniform:4:16"),
        "sampling": (parse_sampling("temperature=0.8,top_p=0.9"), parse_sampling("3:")),
        "behaviours": (parse_behaviour("cancel", "0.3:0.5"), parse_behaviour("slow", "0.2:0.1")),
        **workload,
    }
    return make_plan(
        Workload(**fields),  # type: ignore[arg-type]
        Arrivals("poisson", rate=10.0),
        num_requests,
        vocab_size=500,
        seed=seed,
    )


def test_a_plan_is_its_seed() -> None:
    assert _plan() == _plan()
    assert _plan() != _plan(seed=8)


def test_a_longer_plan_begins_with_the_shorter_ones_prompts() -> None:
    short, long = _plan(20), _plan(60)
    for few, many in zip(short.conversations, long.conversations, strict=False):
        assert few.turns == many.turns


def test_other_content_changes_ids_only() -> None:
    one, other = _plan(content=0), _plan(content=1)
    for this, that in zip(one.conversations, other.conversations, strict=True):
        assert this.due == that.due
        for a, b in zip(this.turns, that.turns, strict=True):
            assert a.prompt != b.prompt
            assert len(a.prompt) == len(b.prompt)
            assert (a.num_output_tokens, a.sampling, a.behaviour) == (
                b.num_output_tokens,
                b.sampling,
                b.behaviour,
            )


def test_shares_are_kept() -> None:
    turns = [turn for conversation in _plan(2000).conversations for turn in conversation.turns]
    kinds = [turn.behaviour.kind for turn in turns]
    assert kinds.count("cancel") / 2000 == pytest.approx(0.3, abs=0.04)
    assert kinds.count("slow") / 2000 == pytest.approx(0.2, abs=0.04)
    assert {turn.behaviour for turn in turns} >= {
        Behaviour("cancel", 0.5),
        Behaviour("slow", 0.1),
        Behaviour(),
    }
    sampled = sum(turn.sampling == (("temperature", 0.8), ("top_p", 0.9)) for turn in turns)
    assert sampled / 2000 == pytest.approx(0.25, abs=0.04)


def test_families_share_their_prefix_and_nothing_else() -> None:
    plan = _plan(100, num_families=3, family_tokens=20)
    prefixes: dict[str, set[object]] = {}
    for conversation in plan.conversations:
        (turn,) = conversation.turns
        prefixes.setdefault(turn.family, set()).add(turn.prompt[:20])
    assert sorted(prefixes) == ["0", "1", "2"]
    assert all(len(seen) == 1 for seen in prefixes.values())
    assert len({turn.prompt[20:] for each in plan.conversations for turn in each.turns}) == 100


def test_conversations_are_cut_at_the_number_of_requests() -> None:
    plan = _plan(7, num_turns=3, think_seconds=0.5)
    assert [len(conversation.turns) for conversation in plan.conversations] == [3, 3, 1]
    assert [turn.turn for each in plan.conversations for turn in each.turns] == [0, 1, 2, 0, 1, 2, 0]
    assert [turn.index for each in plan.conversations for turn in each.turns] == list(range(7))


def test_what_cannot_fit_is_told_before_anything_is_sent() -> None:
    plan = make_plan(
        Workload(parse_lengths("", "100"), parse_lengths("", "29")), Arrivals(), 1, vocab_size=500, seed=0
    )
    plan.check_fits(129)
    with pytest.raises(OptionError, match="129: the server takes 128 tokens"):
        plan.check_fits(128)


def test_lognormal_lengths_have_their_median_and_keep_their_bounds() -> None:
    rng = random.Random(0)
    lengths = parse_lengths("--prompt-tokens", "lognormal:100:0.7:30:400")
    drawn = [lengths.draw(rng) for _ in range(NUM)]
    assert median(drawn) == pytest.approx(100, rel=0.05)
    assert (min(drawn), max(drawn)) == (30, 400)


@pytest.mark.parametrize("text", ["0", "x", "uniform:5", "uniform:9:3", "lognormal:0:1", "12:3", ""])
def test_lengths_that_mean_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="--prompt-tokens"):
        parse_lengths("--prompt-tokens", text)


@pytest.mark.parametrize("text", ["temprature=1", "temperature", "x:temperature=1", "0:top_k=3"])
def test_sampling_that_means_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="--sampling"):
        parse_sampling(text)


@pytest.mark.parametrize("text", ["2:1", "0.5", "0.5:0", "a:b"])
def test_behaviours_that_mean_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="--cancel"):
        parse_behaviour("cancel", text)


@pytest.mark.parametrize(
    ("kind", "options", "option"),
    [
        ("poisson", {"rate": 0.0}, "--rate 0"),
        ("ramp", {"rate_end": -1.0}, "--rate-end -1"),
        ("gamma", {"burstiness": 0.0}, "--burstiness 0"),
        ("closed", {"concurrency": 0}, "--concurrency 0"),
        ("trace", {}, "--arrival trace"),
    ],
)
def test_arrivals_that_mean_nothing(kind: ArrivalKind, options: dict[str, float], option: str) -> None:
    with pytest.raises(OptionError, match=option):
        Arrivals(kind, **options)  # type: ignore[arg-type]


def test_a_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 500, "input_length": 12, "output_length": 3},
        {"timestamp": 750, "token_ids": [5, 6, 7], "output_length": 4},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = read_dataset(path, timestamp_unit=0.001)
    workload = Workload(parse_lengths("", "9"), parse_lengths("", "9"), dataset=rows)
    plan = make_plan(workload, Arrivals("trace", timestamps=timestamps(rows)), 2, vocab_size=50, seed=0)
    assert [conversation.due for conversation in plan.conversations] == [0.0, 0.25]
    first, second = (conversation.turns[0] for conversation in plan.conversations)
    assert (len(first.prompt), first.num_output_tokens) == (12, 3)
    assert (second.prompt, second.num_output_tokens) == ((5, 6, 7), 4)
    with pytest.raises(OptionError, match="--requests 3: the trace has 2"):
        make_plan(workload, Arrivals("trace", timestamps=timestamps(rows)), 3, vocab_size=50, seed=0)


@pytest.mark.parametrize("line", ["[]", "{", '{"input_length": 0}', '{"prompt": ""}'])
def test_a_dataset_tells_the_line_that_is_wrong(line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(OptionError, match=r"data.jsonl:2: an object of"):
        read_dataset(path)


def test_timestamps_that_go_back_are_none() -> None:
    assert timestamps((DatasetRow(timestamp=2.0), DatasetRow(timestamp=1.0))) == ()
    assert timestamps((DatasetRow(timestamp=2.0), DatasetRow())) == ()
