"""Requests that go well, over real gRPC: what streams, what it ends with, and the other methods.

The fake model continues every character with the next one: "a" with "bcdef…".
"""

import asyncio
from typing import Any

import grpc.aio
import pytest

from engine.serving.options import ServerOptions
from inflight import v1
from inflight.v1 import FinishReason
from tests.support.fake_engine import FakeEngineOptions, Gate
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import Served, served_engine

STOP = FinishReason.FINISH_REASON_STOP
LENGTH = FinishReason.FINISH_REASON_LENGTH


async def collect(call: v1.GenerateCall) -> list[v1.GenerateResponse]:
    return [event async for event in call]


def text_of(events: list[v1.GenerateResponse], output_index: int = 0) -> str:
    return "".join(event.text for event in events if event.output_index == output_index)


async def test_deltas_add_up_and_the_last_one_tells_the_end(served: Served) -> None:
    events = await collect(served.client.generate("a", max_new_tokens=5))
    assert text_of(events) == "bcdef"
    assert [event.HasField("finish") for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].finish.reason == LENGTH
    assert events[-1].finish.WhichOneof("matched") is None
    assert events[-1].usage == v1.Usage(prompt_tokens=1, cached_tokens=0, generated_tokens=5)
    assert not any(event.HasField("usage") or event.HasField("timings") for event in events[:-1])


async def test_timings_are_in_order(served: Served) -> None:
    timings = (await served.client.generate_once("a", max_new_tokens=5)).timings
    assert 0 <= timings.queued_seconds <= timings.first_token_seconds <= timings.total_seconds < 60


async def test_once_is_the_stream_in_one_message(served: Served) -> None:
    options: Any = {"max_new_tokens": 5, "token_ids": True}
    events = await collect(served.client.generate("a", **options))
    answer = await served.client.generate_once("a", **options)
    (output,) = answer.outputs
    assert output.text == text_of(events) == "bcdef"
    assert list(output.token_ids) == [token_id for event in events for token_id in event.token_ids]
    assert output.finish == events[-1].finish
    assert answer.usage.generated_tokens == 5


async def test_text_and_ids_are_sent_as_selected(served: Served) -> None:
    only_ids = (await served.client.generate_once("a", max_new_tokens=3, text=False, token_ids=True)).outputs[
        0
    ]
    assert only_ids.text == ""
    assert await served.client.detokenize(only_ids.token_ids) == "bcd"
    only_text = (await served.client.generate_once("a", max_new_tokens=3)).outputs[0]
    assert list(only_text.token_ids) == []


async def test_token_ids_are_a_prompt_too(served: Served) -> None:
    prompt = await served.client.tokenize("ma")
    answer = await served.client.generate_once(prompt, max_new_tokens=3)
    assert answer.outputs[0].text == "bcd"
    assert answer.usage.prompt_tokens == 2


async def test_echo_puts_the_prompt_first(served: Served) -> None:
    answer = await served.client.generate_once("ma", max_new_tokens=3, echo=True, token_ids=True)
    assert answer.outputs[0].text == "mabcd"
    assert len(answer.outputs[0].token_ids) == 5
    assert answer.usage.generated_tokens == 3


async def test_a_stop_string_ends_the_output_before_it(served: Served) -> None:
    events = await collect(served.client.generate("a", max_new_tokens=20, stop_strings=["zzz", "ef"]))
    assert text_of(events) == "bcd"
    assert events[-1].finish == v1.Finish(reason=STOP, stop_string="ef")


async def test_a_stop_token_ends_the_output_before_it(served: Served) -> None:
    (token_id,) = await served.client.tokenize("e")
    answer = await served.client.generate_once("a", max_new_tokens=20, stop_token_ids=[token_id])
    assert answer.outputs[0].text == "bcd"
    assert answer.outputs[0].finish == v1.Finish(reason=STOP, stop_token_id=token_id)


@pytest.mark.parametrize("include", [False, True])
async def test_include_stop_keeps_what_stopped(served: Served, include: bool) -> None:
    options: Any = {"max_new_tokens": 20, "stop_strings": ["ef"], "include_stop": include}
    answer = await served.client.generate_once("a", **options)
    assert answer.outputs[0].text == ("bcdef" if include else "bcd")


async def test_outputs_of_one_request_end_separately(served: Served) -> None:
    events = await collect(served.client.generate("a", n=3, temperature=1.0, max_new_tokens=4))
    assert [text_of(events, index) for index in range(3)] == ["bcde"] * 3
    finished = [event.output_index for event in events if event.HasField("finish")]
    assert sorted(finished) == [0, 1, 2]
    assert [event.HasField("usage") for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].usage.generated_tokens == 12


async def test_many_at_once(served: Served) -> None:
    letters = "abcdefghijklm" * 3
    answers = await asyncio.gather(*(served.client.generate_once(a, max_new_tokens=4) for a in letters))
    for letter, answer in zip(letters, answers, strict=True):
        assert answer.outputs[0].text == "".join(chr(ord(letter) + i) for i in range(1, 5))
    await served.check_is_well()


async def test_the_id_that_the_server_made_is_in_the_metadata(served: Served) -> None:
    call = served.client.generate("a", max_new_tokens=1)
    assert len(await call.request_id()) == 32
    named = served.client.generate("a", max_new_tokens=1, request_id="mine")
    assert await named.request_id() == "mine"
    assert await served.client.generate("").request_id() == ""
    await collect(call)
    await collect(named)


async def test_tokens_that_come_fast_travel_together() -> None:
    """With an interval longer than the request: the first tokens, then the end with everything between."""
    async with served_engine(server_options=ServerOptions(port=0, stream_interval=10.0)) as served:
        events = await collect(served.client.generate("!", max_new_tokens=80, token_ids=True))
    assert sum(len(event.token_ids) for event in events) == 80
    assert len(events) <= 2


async def test_tokenize_and_detokenize_are_inverse(served: Served) -> None:
    assert await served.client.detokenize(await served.client.tokenize("äöü 日本")) == "äöü 日本"
    assert await served.client.tokenize("") == []
    assert await served.client.detokenize([]) == ""


async def test_model_info_tells_what_requests_meet(served: Served) -> None:
    info = await served.client.model_info()
    assert info.architecture == "FakeForCausalLM"
    assert info.max_model_len == 128
    assert info.limits.max_num_seqs == 4
    assert info.limits.max_outputs == 128
    longest = await served.client.generate_once([5] * 127, ignore_eos=True)
    assert longest.usage.generated_tokens == 1


async def test_load_counts_what_runs_and_waits() -> None:
    gate = Gate()
    options = FakeEngineOptions(max_num_seqs=4, runner=FakeRunner(before_step=gate))
    async with served_engine(options) as served:
        idle = await served.client.load()
        assert (idle.num_running, idle.num_waiting, idle.kv_usage) == (0, 0, 0)
        calls = [served.client.generate("a", max_new_tokens=20) for _ in range(6)]
        busy = idle
        while busy.num_running + busy.num_waiting < 6:
            await gate.arrival()
            gate.pass_one()
            busy = await served.client.load()
        assert (busy.num_running, busy.num_waiting) == (4, 2)
        assert busy.num_blocks == idle.num_blocks
        assert busy.kv_usage == pytest.approx(1 - busy.num_free_blocks / busy.num_blocks)
        assert busy.kv_usage > 0
        gate.open()
        await asyncio.gather(*map(collect, calls))


async def test_a_channel_may_be_closed_twice(served: Served) -> None:
    client = v1.Client(served.address)
    await client.connect()
    await client.close()
    await client.close()
    with pytest.raises(grpc.aio.UsageError):
        await client.load()
