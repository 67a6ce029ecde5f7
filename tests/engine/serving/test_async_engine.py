"""Requests that go well, requests that are refused, and readers that are slow."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import (
    AlreadyExistsError,
    ConfigError,
    InvalidArgumentError,
    OverloadedError,
)
from engine.sampling.params import SamplingParams
from engine.serving.async_engine import AsyncEngine
from engine.serving.types import OutputDelta, OutputFinish, OutputOptions, Usage
from scheduler.request import FinishReason
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, fake_engine, running_engine
from tests.support.fake_model import EOS, VOCAB_SIZE, FakeRunner, byte_tokenizer

TEXT = OutputOptions()
BOTH = OutputOptions(text=True, token_ids=True)


async def collect(
    engine: AsyncEngine,
    prompt: str | Sequence[int],
    *,
    request_id: str = "id",
    output: OutputOptions = TEXT,
    priority: int = 0,
    **params: Any,
) -> list[OutputDelta]:
    deltas = engine.generate(request_id, prompt, SamplingParams(**params), output=output, priority=priority)
    return [delta async for delta in deltas]


def text_of(deltas: list[OutputDelta], output_index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.output_index == output_index)


# What comes back


async def test_text_streams_and_the_last_delta_tells_the_end() -> None:
    async with running_engine() as fake:
        deltas = await collect(fake.engine, "a", max_new_tokens=5)
    assert text_of(deltas) == "bcdef"
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish == OutputFinish(FinishReason.LENGTH)
    assert deltas[-1].usage == Usage(num_prompt_tokens=1, num_cached_tokens=0, num_generated_tokens=5)
    assert not any(delta.usage or delta.timings for delta in deltas[:-1])


async def test_timings_are_in_order() -> None:
    async with running_engine() as fake:
        timings = (await collect(fake.engine, "a", max_new_tokens=5))[-1].timings
    assert timings is not None
    assert timings.queued is not None
    assert timings.first_token is not None
    assert 0 <= timings.queued <= timings.first_token <= timings.total


async def test_token_ids_are_a_prompt_too() -> None:
    async with running_engine() as fake:
        deltas = await collect(fake.engine, list(b"xya"), output=BOTH, max_new_tokens=3)
    assert text_of(deltas) == "bcd"
    assert [each for delta in deltas for each in delta.token_ids] == list(b"bcd")


@pytest.mark.parametrize("prompt", ["ma", list(b"ma")])
async def test_echo_puts_the_prompt_before_each_output(prompt: str | list[int]) -> None:
    output = OutputOptions(text=True, token_ids=True, echo=True)
    async with running_engine() as fake:
        deltas = await collect(
            fake.engine, prompt, output=output, max_new_tokens=2, num_outputs=2, temperature=1.0
        )
    for index in range(2):
        mine = [delta for delta in deltas if delta.output_index == index]
        assert text_of(mine, index) == "mabc"
        assert b"".join(bytes(delta.token_ids) for delta in mine) == b"mabc"
    assert deltas[-1].usage == Usage(2, 0, 4)


async def test_a_stop_string_ends_the_output_one_step_later_at_most() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        params = SamplingParams(max_new_tokens=100, stop_strings=("cd",))
        deltas = fake.engine.generate("id", "a", params, output=BOTH)
        text, token_ids = "", b""
        for _ in range(3):
            gate.pass_one()
        while token_ids != b"bcd":  # once the reader has these, the engine has been told
            delta = await anext(deltas)
            text, token_ids = text + delta.text, token_ids + bytes(delta.token_ids)
        gate.pass_one()  # this step may have begun before
        (last,) = [delta async for delta in deltas]
    assert text + last.text == "b"
    assert last.token_ids == ()
    assert last.finish == OutputFinish(FinishReason.STOP, stop_string="cd")
    assert last.usage == Usage(1, 0, 3)
    assert fake.runner.num_steps <= 4


async def test_end_of_sequence_ends_unless_ignored() -> None:
    runner = FakeRunner(successor=lambda token: EOS if token == ord("c") else (token + 1) % 256)
    async with running_engine(FakeEngineOptions(runner=runner)) as fake:
        stopped = await collect(fake.engine, "a", max_new_tokens=9)
        ignored = await collect(fake.engine, "a", max_new_tokens=5, ignore_eos=True)
    assert (text_of(stopped), stopped[-1].finish) == ("bc", OutputFinish(FinishReason.STOP, None, EOS))
    assert ignored[-1].finish == OutputFinish(FinishReason.LENGTH)


async def test_the_second_of_two_equal_prompts_finds_the_first_in_the_cache() -> None:
    async with running_engine() as fake:
        first = await collect(fake.engine, "a" * 9, max_new_tokens=2)
        second = await collect(fake.engine, "a" * 9, max_new_tokens=2)
    assert (first[-1].usage, second[-1].usage) == (Usage(9, 0, 2), Usage(9, 8, 2))


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
async def test_many_at_once_over_a_pool_too_small_for_them(max_steps_in_flight: int) -> None:
    gate = Gate()
    runner = FakeRunner(max_steps_in_flight=max_steps_in_flight, before_step=gate)
    asked = [(bytes([40 + i % 20]) * (1 + i % 7), 10 + i % 20) for i in range(60)]
    async with running_engine(FakeEngineOptions(num_blocks=12, runner=runner)) as fake:
        reading = asyncio.gather(
            *(
                collect(fake.engine, list(prompt), request_id=str(i), max_new_tokens=num_tokens)
                for i, (prompt, num_tokens) in enumerate(asked)
            )
        )
        await gate.arrival()  # all have been submitted: token ids need no tokenizer
        gate.open()
        answers = await reading
    for (prompt, num_tokens), deltas in zip(asked, answers, strict=True):
        assert text_of(deltas) == bytes(range(prompt[-1] + 1, prompt[-1] + 1 + num_tokens)).decode()
    assert fake.scheduler.stats().num_preemptions > 0


async def test_no_random_seed_is_used_twice_and_a_given_one_is_kept() -> None:
    seeds: dict[str, set[object]] = {"fresh": set(), "given": set()}
    kind = "fresh"

    def note(step: Any) -> None:
        seeds[kind] |= {new.sampling.seed for new in step.new_rows}

    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=note))) as fake:
        for _ in range(3):
            await collect(fake.engine, "a", max_new_tokens=1)
        kind = "given"
        await collect(fake.engine, "a", max_new_tokens=1, seed=7)
    assert len(seeds["fresh"]) == 3
    assert all(isinstance(seed, int) and 0 <= seed < 2**64 for seed in seeds["fresh"])
    assert seeds["given"] == {7}


async def test_tokenize_and_detokenize() -> None:
    async with running_engine() as fake:
        assert await fake.engine.tokenize("é") == list("é".encode())
        assert await fake.engine.detokenize([97, EOS]) == "a"
        assert await fake.engine.detokenize([97, EOS], skip_special_tokens=False) == "a<eos>"


# What is refused


@pytest.mark.parametrize(
    ("prompt", "params", "field", "value", "limit"),
    [
        ("", {}, "prompt", "0 tokens", "must have 1 to 127 tokens"),
        ([], {}, "token_ids", "0 tokens", "must have 1 to 127 tokens"),
        ("a" * 128, {}, "prompt", "128 tokens", "must have 1 to 127 tokens"),
        ([97] * 128, {}, "token_ids", "128 tokens", "must have 1 to 127 tokens"),
        ("a" * 2049, {}, "prompt", "2049 characters", "at most 2048 characters fit 128 tokens"),
        ([97, -1], {}, "token_ids", -1, r"must be in \[0, 258\)"),
        ([VOCAB_SIZE, 97], {}, "token_ids", VOCAB_SIZE, r"must be in \[0, 258\)"),
        ("\ud800", {}, "prompt", "\ud800", "surrogate"),
        ("a" * 100, {"max_new_tokens": 29}, "max_new_tokens", 29, "at most 28: the prompt has 100 of"),
        ("a" * 100, {"min_new_tokens": 29}, "min_new_tokens", 29, "at most 28: the prompt has 100 of"),
        ("a", {"num_outputs": 9, "temperature": 1.0}, "n", 9, "at most max_num_seqs=8"),
        ("a", {"stop_token_ids": (5, VOCAB_SIZE)}, "stop_token_ids", VOCAB_SIZE, r"must be in \[0, 258\)"),
    ],
)
async def test_what_cannot_run_is_refused_with_field_value_and_limit(
    prompt: str | list[int], params: dict[str, Any], field: str, value: object, limit: str
) -> None:
    async with running_engine() as fake:
        with pytest.raises(InvalidArgumentError, match=limit) as raised:
            await collect(fake.engine, prompt, **params)
        assert (raised.value.field, raised.value.value) == (field, value)
        assert fake.runner.num_steps == 0
        assert text_of(await collect(fake.engine, "a", max_new_tokens=1)) == "b"  # same id, same slot


async def test_the_longest_prompt_and_the_longest_output_fit() -> None:
    async with running_engine() as fake:
        assert (await collect(fake.engine, "a" * 127, max_new_tokens=1))[-1].usage == Usage(127, 0, 1)
        whole = await collect(fake.engine, "a", ignore_eos=True)
        assert whole[-1].usage == Usage(1, 0, 127)
        assert whole[-1].finish == OutputFinish(FinishReason.LENGTH)


async def test_a_small_pool_shortens_the_longest_sequence() -> None:
    """The last token is never computed: 3 blocks of 4 tokens hold a sequence of 13."""
    async with running_engine(FakeEngineOptions(num_blocks=3)) as fake:
        assert fake.engine.model_info.max_model_len == 13
        with pytest.raises(InvalidArgumentError, match="must have 1 to 12 tokens: max_model_len=13"):
            await collect(fake.engine, "a" * 13)
        assert (await collect(fake.engine, "a" * 12))[-1].usage == Usage(12, 0, 1)


def test_a_pool_without_room_for_anything_is_an_error_of_the_configuration() -> None:
    fake = fake_engine()
    info = replace(fake.engine.model_info, max_model_len=1)
    with pytest.raises(ConfigError, match="max_model_len 1"):
        AsyncEngine(fake.scheduler, fake.kv, fake.runner, byte_tokenizer(), info)


async def test_priority_is_refused_where_it_would_be_ignored() -> None:
    async with running_engine() as fake:
        with pytest.raises(InvalidArgumentError, match="priority=1: must be 0: this server runs policy fcfs"):
            await collect(fake.engine, "a", priority=1)


async def test_the_higher_priority_runs_sooner() -> None:
    gate = Gate()
    options = FakeEngineOptions(policy="priority", max_num_seqs=1, runner=FakeRunner(before_step=gate))
    ended: list[int] = []

    async def run(priority: int) -> None:
        await collect(
            fake.engine, [97], request_id=str(priority), priority=priority, max_new_tokens=2, min_new_tokens=2
        )
        ended.append(priority)

    async with running_engine(options) as fake:
        tasks = [asyncio.ensure_future(run(9))]
        await gate.arrival()
        tasks += [asyncio.ensure_future(run(priority)) for priority in (-1, 3, 0)]
        await asyncio.sleep(0)  # token ids are submitted at once
        gate.open()
        await asyncio.gather(*tasks)
    assert ended == [9, 3, 0, -1]


async def test_an_id_can_be_used_again_but_not_twice_at_once() -> None:
    async with running_engine() as fake:
        for _ in range(2):
            async with aclosing(fake.engine.generate("same", "a", SamplingParams())) as deltas:
                await anext(deltas)
                with pytest.raises(AlreadyExistsError, match="'same'"):
                    await collect(fake.engine, "b", request_id="same")
            await fake.engine._streams.idle.wait()


async def test_slots_are_taken_before_any_work_and_come_back() -> None:
    gate = Gate()
    options = FakeEngineOptions(max_num_seqs=2, max_num_queued=1, runner=FakeRunner(before_step=gate))
    async with running_engine(options) as fake:
        pair = asyncio.ensure_future(
            collect(fake.engine, "a", request_id="2 slots", num_outputs=2, temperature=1.0, max_new_tokens=3)
        )
        await gate.arrival()
        with pytest.raises(OverloadedError, match="queue is full"):
            await collect(fake.engine, "a", request_id="2 more", num_outputs=2, temperature=1.0)
        one = asyncio.ensure_future(collect(fake.engine, "a", request_id="the last", max_new_tokens=3))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(OverloadedError):
                await collect(fake.engine, "a" * 1000, request_id="too many")  # not even validated
        gate.open()
        await asyncio.gather(pair, one)
        assert text_of(await collect(fake.engine, "a", request_id="too many", max_new_tokens=1)) == "b"


# Who reads slowly


async def until_engine_is_done(fake: FakeEngine, request_id: str) -> None:
    """Nobody may be waiting for the request's deltas: only the engine works on it."""
    if (stream := fake.engine._streams.find(request_id)) is not None:
        await stream.ended


async def test_a_reader_that_sleeps_finds_everything_in_one_delta_and_holds_up_nobody() -> None:
    gate = Gate()
    async with running_engine(FakeEngineOptions(runner=FakeRunner(before_step=gate))) as fake:
        slow = fake.engine.generate("slow", "a", SamplingParams(max_new_tokens=100))
        gate.pass_one()
        assert (await anext(slow)).text == "b"
        gate.open()
        await until_engine_is_done(fake, "slow")
        fast = await collect(fake.engine, "k", request_id="fast", max_new_tokens=5)
        assert text_of(fast) == "lmnop"
        (rest,) = [delta async for delta in slow]
    assert rest.text == bytes(range(99, 198)).decode(errors="replace")
    assert rest.usage == Usage(1, 0, 100)


async def test_what_is_not_read_keeps_its_slot() -> None:
    """So that what all readers together have not read is bounded."""
    async with running_engine(FakeEngineOptions(max_num_seqs=1, max_num_queued=0)) as fake:
        async with aclosing(fake.engine.generate("slow", "a", SamplingParams(max_new_tokens=9))) as slow:
            await anext(slow)
            await until_engine_is_done(fake, "slow")
            with pytest.raises(OverloadedError):
                await collect(fake.engine, "a", request_id="other")
        assert await collect(fake.engine, "a", request_id="other")


async def test_interval_makes_fewer_deltas_of_the_same_text() -> None:
    output = OutputOptions(interval=1e6)
    async with running_engine() as fake:
        deltas = await collect(fake.engine, "a", output=output, max_new_tokens=20)
    assert len(deltas) <= 2
    assert text_of(deltas) == "bcdefghijklmnopqrstu"


# What is told


async def test_one_line_is_logged_for_each_request_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inflight")
    endless = FakeEngineOptions(num_blocks=8192, max_model_len=30_000)
    async with running_engine(endless) as fake:
        await collect(fake.engine, "secret", request_id="good", max_new_tokens=5)
        with pytest.raises(InvalidArgumentError):
            await collect(fake.engine, "secret" * 10_000, request_id="bad")
        async with aclosing(fake.engine.generate("left", "secret", SamplingParams())) as deltas:
            await anext(deltas)
    lines = [record.getMessage() for record in caplog.records if record.name == "inflight"]
    good, bad, left = lines
    assert good.startswith("request good: length; tokens: 6 prompt, 0 cached, 5 generated; seconds: 0.")
    assert bad.startswith("request bad: refused, invalid (prompt: must have 1 to 29999 tokens")
    assert left.startswith("request left: abort; tokens: 6 prompt, 4 cached, ")
    assert "secret" not in " ".join(lines)


async def test_load_can_be_asked_for_on_any_thread() -> None:
    async with running_engine() as fake:
        load = await asyncio.to_thread(fake.engine.load)
    assert (load.num_running, load.num_waiting, load.num_blocks, load.num_free_blocks) == (0, 0, 64, 64)
