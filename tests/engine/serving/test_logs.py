"""One line for each request, whatever way it ends, over real gRPC; and lines that programs can read."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc.aio
import pytest

from engine.errors import InvalidArgumentError
from engine.serving.logs import JsonFormatter
from engine.serving.logs_requests import MAX_PROMPT_CHARS, MAX_PROMPT_TOKENS, RequestLog
from engine.serving.options import ServerOptions
from engine.serving.request_report import RequestReport, Unread, error_line
from inflight import v1
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngineOptions, Gate, running_engine
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served, served_engine

SECRET = "secret"
LONG = 50_000  # tokens: seconds
GENERATE = "/inflight.v1.Generation/Generate"
Line = dict[str, Any]


@pytest.fixture
def lines() -> Iterator[Callable[[], list[Line]]]:
    """What has been logged as JSON, parsed line by line."""
    stream, logger = io.StringIO(), logging.getLogger("inflight")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class Place:
    """A server whose only slot is free, and whose steps wait at a gate."""

    served: Served
    gate: Gate

    def generate(self, prompt: str = SECRET, **options: Any) -> v1.GenerateCall:
        given: Any = {"request_id": "mine", "ignore_eos": True, "max_new_tokens": 20} | options
        return self.served.client.generate(prompt, **given)

    async def fails(self, call: Any) -> str:
        """The details of the error with which a call ends."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (drained(call) if isinstance(call, v1.GenerateCall) else call)
        return caught.value.details() or ""


async def drained(call: v1.GenerateCall) -> None:
    async for _ in call:
        pass


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """Everything has ended when the block has."""
    gate = Gate()

    def before_step(step: StepInput) -> None:
        gate(step)
        if any(chunk.token_ids[-1] == ord("!") for chunk in step.chunks):
            raise RuntimeError("out\nof luck")

    options = FakeEngineOptions(
        max_num_seqs=1,
        max_num_queued=0,
        num_blocks=16_384,
        max_model_len=60_000,
        runner=FakeRunner(before_step=before_step),
    )
    server_options = ServerOptions(port=0, stream_interval=0.0, stall_seconds=0.2)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options, server_options) as served:
        yield Place(served, gate)
        gate.open()


async def runs_to_its_length(place: Place) -> None:
    place.gate.open()
    await drained(place.generate())


async def stops(place: Place) -> None:
    place.gate.open()
    await drained(place.generate("abc", stop_strings=["fg"]))


async def runs_out_of_time(place: Place) -> None:
    place.gate.open()
    await drained(place.generate(max_new_tokens=LONG, max_time_seconds=0.05))


async def is_aborted(place: Place) -> None:
    call = place.generate()
    await place.gate.arrival()
    await place.served.client.abort("mine")
    place.gate.open()
    await drained(call)


async def is_cancelled(place: Place) -> None:
    call = place.generate(max_new_tokens=LONG)
    await place.gate.arrival()
    call.cancel()


async def is_cancelled_at_once(place: Place) -> None:
    call = place.generate(max_new_tokens=LONG)
    await call.request_id()
    call.cancel()


async def is_late(place: Place) -> None:
    await place.fails(place.generate(max_new_tokens=LONG, timeout=0.2))


async def is_not_read(place: Place) -> None:
    window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    place.gate.open()
    async with v1.Client(place.served.address, options=window) as client:
        call = client.generate(SECRET, request_id="mine", ignore_eos=True, token_ids=True)
        await call.request_id()
        await place.served.until_load(lambda load: load.num_running == 1)
        await place.served.until_load(lambda load: load.num_running == 0)


async def fails_in_a_step(place: Place) -> None:
    place.gate.open()
    assert "luck" in await place.fails(place.generate("secret!"))


async def is_shut_down(place: Place) -> None:
    call = place.generate(max_new_tokens=LONG)
    await place.gate.arrival()
    place.gate.open()
    await place.served.fake.engine.drain(0.0)
    await drained(call)


async def has_a_wrong_field(place: Place) -> None:
    await place.fails(place.generate(temperature=-1.0))


async def is_too_long(place: Place) -> None:
    await place.fails(place.generate(SECRET * 20_000))


async def finds_no_slot(place: Place) -> None:
    other = place.generate(request_id="other")
    await place.gate.arrival()
    await place.fails(place.generate())
    other.cancel()


async def comes_too_late(place: Place) -> None:
    drain = asyncio.create_task(place.served.fake.engine.drain(SECONDS_UNTIL_STUCK))
    await asyncio.sleep(0)
    await place.fails(place.generate())
    await drain


ENDS: dict[Callable[[Place], Awaitable[None]], Line] = {
    runs_to_its_length: {"reason": "length", "num_prompt_tokens": 6, "num_generated_tokens": 20},
    stops: {"reason": "stop", "num_prompt_tokens": 3, "num_generated_tokens": 4},
    runs_out_of_time: {"reason": "time"},
    is_aborted: {"reason": "abort", "interruption": "abort_call"},
    is_cancelled: {"reason": "abort", "interruption": "client_left"},
    is_cancelled_at_once: {"reason": "abort", "interruption": "client_left"},
    is_late: {"reason": "deadline", "interruption": None},
    is_not_read: {"reason": "abort", "interruption": "client_left"},
    is_shut_down: {"reason": "abort", "interruption": "shutdown"},
    fails_in_a_step: {"reason": "error", "level": "warning", "error": "RuntimeError: out of luck"},
    has_a_wrong_field: {"reason": "refused", "refusal": "invalid"},
    is_too_long: {"reason": "refused", "refusal": "invalid"},
    finds_no_slot: {"reason": "refused", "refusal": "overloaded"},
    comes_too_late: {"reason": "refused", "refusal": "unavailable"},
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "time": str,
    "level": str,
    "logger": str,
    "event": str,
    "request_id": str,
    "reason": str,
    "refusal": (str, type(None)),
    "error": (str, type(None)),
    "interruption": (str, type(None)),
    "num_prompt_tokens": int,
    "num_cached_tokens": int,
    "num_generated_tokens": int,
    "num_preemptions": int,
    "queued_seconds": (float, type(None)),
    "first_token_seconds": (float, type(None)),
    "total_seconds": float,
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_every_end_is_one_line(
    end: Callable[[Place], Awaitable[None]],
    lines: Callable[[], list[Line]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as where:
        await end(where)
    (line,) = (line for line in lines() if line.get("request_id") == "mine")
    assert {name: line[name] for name in ENDS[end]} == ENDS[end]
    assert {name: type(value) for name, value in line.items() if not isinstance(value, TYPES[name])} == {}
    assert line.keys() == TYPES.keys()
    assert line["event"] == "request"
    if line["reason"] not in ("error", "refused"):
        assert line["error"] is None
    (text,) = (text for text in messages(caplog) if text.startswith("request mine: "))
    assert "\n" not in text
    assert SECRET not in text + json.dumps(line)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "inflight"]


async def test_times_are_in_order_and_those_that_never_were_are_null(
    lines: Callable[[], list[Line]],
) -> None:
    async with place() as where:
        await has_a_wrong_field(where)
        await runs_to_its_length(where)
    refused, good = lines()
    assert (refused["queued_seconds"], refused["first_token_seconds"]) == (None, None)
    assert 0 <= good["queued_seconds"] <= good["first_token_seconds"] <= good["total_seconds"]
    logged = datetime.fromisoformat(good["time"])
    assert logged.utcoffset() is not None
    assert abs((datetime.now(UTC) - logged).total_seconds()) < SECONDS_UNTIL_STUCK


async def test_a_message_that_is_no_request_is_refused_in_a_line_too(
    lines: Callable[[], list[Line]],
) -> None:
    async with place() as where:
        call: Any = where.served.client.channel.unary_stream(GENERATE)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call(b"\xff\xff"):
                pass
        metrics = where.served.fake.engine.metrics
        assert metrics.num_rejected["invalid"] == 1
        await where.fails(where.generate(request_id="two\nlines"))
    garbage, no_id = lines()
    assert (garbage["request_id"], garbage["reason"], garbage["refusal"]) == ("", "refused", "invalid")
    assert (no_id["request_id"], no_id["error"][:11]) == ("", "request_id:")


async def test_a_request_whose_id_is_taken_has_a_line_of_its_own(lines: Callable[[], list[Line]]) -> None:
    async with place() as where:
        first = where.generate()
        await where.gate.arrival()
        await where.fails(where.generate())
        where.gate.open()
        await drained(first)
    second, first_line = lines()
    assert (second["request_id"], second["refusal"]) == ("mine", "duplicate")
    assert (first_line["request_id"], first_line["reason"]) == ("mine", "length")


async def test_a_client_that_left_before_its_request_was_begun_has_a_line(
    lines: Callable[[], list[Line]],
) -> None:
    async with running_engine() as fake:
        fake.engine.leave(Unread("mine"), FinishReason.ABORT)
        assert fake.engine.metrics.num_ended[FinishReason.ABORT] == 1
    (line,) = lines()
    assert (line["request_id"], line["reason"], line["interruption"]) == ("mine", "abort", "client_left")


async def test_preemptions_of_all_outputs_are_counted(lines: Callable[[], list[Line]]) -> None:
    async with served_engine(FakeEngineOptions(num_blocks=12)) as served:
        options: Any = {"n": 3, "temperature": 1.0, "ignore_eos": True, "max_new_tokens": 30}
        await drained(served.client.generate("a", **options))
        num_preemptions = served.fake.scheduler.stats().num_preemptions
    assert num_preemptions > 0
    (line,) = lines()
    assert line["num_preemptions"] == num_preemptions


async def test_prompts_are_shown_where_they_are_asked_for_and_cut(
    lines: Callable[[], list[Line]], caplog: pytest.LogCaptureFixture
) -> None:
    async with place() as where:
        where.served.fake.engine.set_observers(RequestLog(with_prompts=True))
        where.gate.open()
        await drained(where.generate("a\n" * 1000))
        await drained(where.served.client.generate([97] * 1000, max_new_tokens=3))
    text, ids = lines()
    assert text["prompt"] == ("a\n" * 1000)[:MAX_PROMPT_CHARS]
    assert ids["prompt_token_ids"] == [97] * MAX_PROMPT_TOKENS
    assert all("\n" not in message for message in messages(caplog))
    assert r"; prompt: 'a\na\n" in caplog.text


async def test_an_observer_that_fails_fails_no_request(lines: Callable[[], list[Line]]) -> None:
    def fail(report: RequestReport) -> None:
        raise RuntimeError("a bug")

    async with place() as where:
        where.served.fake.engine.set_observers(fail, RequestLog())
        await runs_to_its_length(where)
    failure, line = lines()
    assert (failure["level"], failure["event"]) == ("error", "message")
    assert failure["exception"].endswith("RuntimeError: a bug")
    assert line["reason"] == "length"


def test_other_lines_are_messages_with_their_exception() -> None:
    try:
        raise ValueError("two\nlines \udcff")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "", 0, "%s: %d", ("x\ny", 3), sys.exc_info())
    formatted = JsonFormatter().format(record)
    assert "\n" not in formatted
    line = json.loads(formatted.encode())
    assert (line["level"], line["logger"], line["event"], line["message"]) == (
        *("error", "a.b", "message"),
        "x\ny: 3",
    )
    assert line["exception"].startswith("Traceback ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SECRET, "some.field: too bad"),
        ([SECRET], "some.field: too bad"),
        (-1.5, "some.field=-1.5: too bad"),
        (None, "some.field=None: too bad"),
    ],
)
def test_errors_repeat_numbers_but_no_text(value: object, expected: str) -> None:
    assert error_line(InvalidArgumentError("some.field", value, "too\nbad")) == expected
