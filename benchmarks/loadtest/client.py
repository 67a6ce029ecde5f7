"""One request, from its sending to its record; and a conversation, turn by turn."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from benchmarks.loadtest.records import Outcome, RequestRecord
from benchmarks.loadtest.schedule import Conversation, PlannedRequest, Prompt, joined
from benchmarks.loadtest.tally import Tally
from benchmarks.loadtest.targets import End, RequestFailedError, Target, WireRequest

_OUTCOMES: dict[str, Outcome] = {"cancel": "cancelled", "deadline": "deadline"}


class _Stream:
    """What has come of one request."""

    def __init__(self) -> None:
        self.chunks: list[tuple[float, int]] = []
        self.answer: list[Prompt] = []
        self.end: End | None = None


class Sender:
    """Sends requests to one target.

    zero: the run's start on time.monotonic. is_over: whether no more turns are to be sent.
    """

    def __init__(
        self, target: Target, tally: Tally, *, zero: float, process: int, is_over: Callable[[], bool]
    ) -> None:
        self._target, self._tally = target, tally
        self._zero, self._process, self._is_over = zero, process, is_over

    def now(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self._zero

    async def sleep_until(self, due: float) -> None:
        """Never shorter, though loops round to milliseconds."""
        while (rest := due - self.now()) > 0:  # noqa: ASYNC110 (time is no event)
            await asyncio.sleep(rest)

    async def hold(self, conversation: Conversation, due: float) -> None:
        """All turns; a turn that did not succeed is the last one. due: of the first."""
        history: Prompt | None = None
        for planned in conversation.turns:
            if planned.turn > 0:
                due = self.now() + conversation.think_seconds
                await self.sleep_until(due)
                if self._is_over():
                    return
            prompt = planned.prompt if history is None else joined((history, planned.prompt))
            is_last = planned is conversation.turns[-1]
            answer = await self._send(planned, prompt, due, wants_answer=not is_last)
            if answer is None or is_last:
                return
            history = joined((prompt, *answer))

    async def _send(
        self, planned: PlannedRequest, prompt: Prompt, due: float, *, wants_answer: bool
    ) -> list[Prompt] | None:
        """The answer's pieces; None if it failed."""
        behaviour = planned.behaviour
        deadline = behaviour.seconds if behaviour.kind == "deadline" else None
        request = WireRequest(
            prompt, planned.num_output_tokens, planned.sampling, planned.ignore_eos, deadline, wants_answer
        )
        stream = _Stream()
        outcome: Outcome = "success"
        error: str | None = None
        self._tally.num_sent += 1
        sent = self.now()
        try:
            async with asyncio.timeout(self._patience(planned)):
                await self._read(request, stream, sent, behaviour.seconds if behaviour.kind == "slow" else 0)
        except TimeoutError:
            outcome = _OUTCOMES[behaviour.kind]
        except RequestFailedError as failure:
            outcome, error = self._judge(failure, planned, stream), str(failure)
        except asyncio.CancelledError:
            outcome = "incomplete"
            raise
        except Exception as failure:  # one request must not take the others down
            outcome, error = "failed", f"{type(failure).__name__}: {failure}"
        finally:
            self._tally.end(self._record(planned, prompt, due, sent, stream, outcome, error))
        return stream.answer if outcome == "success" else None

    def _patience(self, planned: PlannedRequest) -> float | None:
        kind = planned.behaviour.kind
        keeps = kind == "cancel" or (kind == "deadline" and not self._target.sends_deadlines)
        return planned.behaviour.seconds if keeps else None

    async def _read(self, request: WireRequest, stream: _Stream, sent: float, pause: float) -> None:
        tally, zero = self._tally, self._zero
        async with aclosing(self._target.stream(request)) as deltas:
            async for num_tokens, answer, end in deltas:
                if num_tokens:
                    now = time.monotonic() - zero
                    if not stream.chunks:
                        tally.ttfts.append(now - sent)
                    stream.chunks.append((now, num_tokens))
                    tally.num_tokens += num_tokens
                if request.wants_answer:
                    stream.answer.append(answer)
                if end is not None:
                    stream.end = end
                if pause:
                    await asyncio.sleep(pause)
        if stream.end is None:
            raise RequestFailedError("failed", "the stream ended without a finish reason")

    def _judge(self, failure: RequestFailedError, planned: PlannedRequest, stream: _Stream) -> Outcome:
        if failure.kind == "busy" and not stream.chunks:
            return "rejected"
        if failure.kind == "deadline" and planned.behaviour.kind == "deadline":
            return "deadline"
        return "failed"

    def _record(
        self,
        planned: PlannedRequest,
        prompt: Prompt,
        due: float,
        sent: float,
        stream: _Stream,
        outcome: Outcome,
        error: str | None,
    ) -> RequestRecord:
        end = stream.end or End("")
        num_seen = sum(num_tokens for _, num_tokens in stream.chunks)
        num_known = 0 if isinstance(prompt, str) else len(prompt)
        return RequestRecord(
            index=planned.index,
            scheduled=due,
            sent=sent,
            ended=self.now(),
            chunks=tuple(stream.chunks),
            outcome=outcome,
            error=error,
            finish_reason=end.finish_reason or None,
            num_prompt_tokens=num_known if end.num_prompt_tokens is None else end.num_prompt_tokens,
            num_cached_tokens=end.num_cached_tokens or 0,
            num_output_tokens=num_seen if end.num_output_tokens is None else end.num_output_tokens,
            num_wanted_tokens=planned.num_output_tokens,
            family=planned.family,
            turn=planned.turn,
            behaviour=planned.behaviour.kind,
            process=self._process,
        )
