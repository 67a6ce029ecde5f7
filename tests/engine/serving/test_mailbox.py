"""Deltas wait merged, in order, and end once."""

import asyncio
import random
from dataclasses import replace

import pytest

from engine.serving.mailbox import Mailbox
from engine.serving.types import OutputDelta, OutputFinish, Timings, TokenLogprob, Usage
from scheduler.request import FinishReason

STOP = OutputFinish(FinishReason.STOP)
USAGE = Usage(num_prompt_tokens=3, num_cached_tokens=0, num_generated_tokens=2)
TIMINGS = Timings(queued=0.0, first_token=0.5, total=1.0)
FOR_EVER = 1e9


def end(index: int = 0, text: str = "") -> OutputDelta:
    return OutputDelta(index, text, finish=STOP, usage=USAGE, timings=TIMINGS)


async def test_reader_that_keeps_up_gets_each_delta_as_it_came() -> None:
    mailbox = Mailbox()
    for delta in (OutputDelta(0, "a", (1,)), OutputDelta(1, "b", (2,)), OutputDelta(0, "c", (3,)), end(1)):
        mailbox.put(delta)
        assert await anext(mailbox) == delta


async def test_deltas_that_wait_are_merged_by_output() -> None:
    mailbox = Mailbox()
    for delta in (
        OutputDelta(0, "a", (1,)),
        OutputDelta(1, "x", (7,)),
        OutputDelta(0, "", (2,)),
        end(1, "y"),
    ):
        mailbox.put(delta)
    mailbox.put(OutputDelta(0, "dropped: it has ended"))
    assert [delta async for delta in mailbox] == [
        OutputDelta(0, "a", (1, 2)),
        OutputDelta(1, "xy", (7,), STOP, USAGE, TIMINGS),
    ]


async def test_log_probabilities_are_merged_as_tokens_are() -> None:
    scored = [TokenLogprob(token_id, -1.0, "") for token_id in range(4)]
    mailbox = Mailbox()
    mailbox.put(OutputDelta(0, prompt_logprobs=(scored[0],)))
    mailbox.put(OutputDelta(0, prompt_logprobs=(scored[1],)))
    mailbox.put(OutputDelta(0, "a", logprobs=(scored[2],)))
    mailbox.put(replace(end(), logprobs=(scored[3],)))
    (delta,) = [delta async for delta in mailbox]
    assert (delta.prompt_logprobs, delta.logprobs) == (tuple(scored[:2]), tuple(scored[2:]))


async def test_end_of_the_stream_comes_last_although_its_output_waited_first() -> None:
    mailbox = Mailbox()
    for delta in (OutputDelta(0, "a"), OutputDelta(1, "x"), OutputDelta(1, "y", finish=STOP), end(0, "b")):
        mailbox.put(delta)
    assert [delta async for delta in mailbox] == [OutputDelta(1, "xy", finish=STOP), end(0, "ab")]


async def test_nothing_is_lost_or_reordered_whatever_the_reader_does() -> None:
    """Random puts and takes: each output's text and ids are what was put; only the last delta has usage."""
    for seed in range(50):
        rng, mailbox = random.Random(seed), Mailbox()
        num_outputs, taken = rng.randint(1, 4), []
        put: dict[int, list[int]] = {}
        open_outputs = list(range(num_outputs))
        while open_outputs:
            index = rng.choice(open_outputs)
            finish = STOP if rng.random() < 0.2 else None
            if finish:
                open_outputs.remove(index)
            ids = tuple(rng.randrange(100) for _ in range(rng.randrange(3)))
            usage = None if open_outputs else USAGE
            mailbox.put(OutputDelta(index, "".join(map(chr, ids)), ids, finish, usage))
            put.setdefault(index, []).extend(ids)
            while mailbox.num_waiting and rng.random() < 0.3:
                taken.append(await anext(mailbox))
        taken += [delta async for delta in mailbox]
        for index, all_ids in put.items():
            mine = [delta for delta in taken if delta.output_index == index]
            assert [each for delta in mine for each in delta.token_ids] == all_ids
            assert "".join(delta.text for delta in mine) == "".join(map(chr, all_ids))
            assert [delta.finish for delta in mine] == [None] * (len(mine) - 1) + [STOP]
        assert [delta.usage for delta in taken] == [None] * (len(taken) - 1) + [USAGE]


async def test_reader_waits_for_what_comes() -> None:
    mailbox = Mailbox()
    reader = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    assert not reader.done()
    mailbox.put(end())
    assert await reader == end()
    with pytest.raises(StopAsyncIteration):
        await anext(mailbox)


async def test_a_cancelled_reader_loses_nothing() -> None:
    mailbox = Mailbox()
    reader = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(OutputDelta(0, "a"))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await anext(mailbox) == OutputDelta(0, "a")


async def test_error_is_raised_after_what_came_before_and_only_the_first_counts() -> None:
    mailbox = Mailbox(interval=FOR_EVER)
    mailbox.put(OutputDelta(0, "a"))
    await anext(mailbox)
    mailbox.put(OutputDelta(0, "b"))
    mailbox.fail(ValueError("first"))
    mailbox.fail(ValueError("second"))
    mailbox.put(end())
    assert await anext(mailbox) == OutputDelta(0, "b")
    for _ in range(2):
        with pytest.raises(ValueError, match="first"):
            await anext(mailbox)


async def test_no_error_after_the_end() -> None:
    mailbox = Mailbox()
    mailbox.put(end())
    mailbox.fail(ValueError("late"))
    assert [delta async for delta in mailbox] == [end()]


async def test_interval_holds_back_all_but_the_first_and_the_last() -> None:
    mailbox = Mailbox(interval=FOR_EVER)
    mailbox.put(OutputDelta(0, "a"))
    assert (await anext(mailbox)).text == "a"
    mailbox.put(OutputDelta(0, "b"))
    mailbox.put(OutputDelta(1, "x"))
    assert (await anext(mailbox)).text == "x"  # the first of another output
    reader = asyncio.ensure_future(anext(mailbox))
    for text in "cd":
        mailbox.put(OutputDelta(0, text))
        await asyncio.sleep(0)
        assert not reader.done()
    mailbox.put(OutputDelta(0, "e", finish=STOP))
    assert (await reader).text == "bcde"


async def test_interval_ends() -> None:
    mailbox = Mailbox(interval=0.001)
    mailbox.put(OutputDelta(0, "a"))
    await anext(mailbox)
    mailbox.put(OutputDelta(0, "b"))
    assert (await anext(mailbox)).text == "b"
