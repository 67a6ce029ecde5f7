"""How a request went, for whoever is to know: logs and traces."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from engine.errors import InvalidArgumentError
from engine.serving.intake import Asked
from engine.serving.metrics import Interruption
from engine.serving.request_outputs import RequestEnd
from engine.serving.types import MAX_REQUEST_ID_LENGTH, Timings, Usage
from scheduler.request import FinishReason

REFUSED = "refused"  # beside the values of FinishReason
NOTHING = Usage(0, 0, 0)


@dataclass(frozen=True, slots=True)
class RequestReport:
    """The one end of a request, accepted or not.

    request_id: as the client gave it, or as it was made for it; "" if that could not be read or is no id.
    arrival_time: seconds on the engine's clock. reason: the value of a FinishReason, or REFUSED.
    refusal: "invalid", "duplicate", "overloaded" or "unavailable", with REFUSED.
    error: in one line (see error_line). interruption: who wanted an ABORT.
    asked: None if the message could not be read, or if the client was gone before that was looked at.
    trace_headers: W3C trace context, as it came with the call. Takes its time: for traces only.
    """

    request_id: str
    arrival_time: float
    reason: str
    usage: Usage
    timings: Timings
    num_preemptions: int = 0
    refusal: str | None = None
    error: str | None = None
    interruption: Interruption | None = None
    asked: Asked | None = None
    trace_headers: Callable[[], Mapping[str, str]] = dict


RequestObserver: TypeAlias = Callable[[RequestReport], None]


def ended(asked: Asked, end: RequestEnd, why: Interruption | None) -> RequestReport:
    """Of an accepted request. why: of an ABORT, if anybody asked for it."""
    is_abort = end.reason is FinishReason.ABORT
    return RequestReport(
        asked.request_id,
        asked.arrival_time,
        end.reason.value,
        end.usage,
        end.timings,
        num_preemptions=end.num_preemptions,
        error=_line(end.error) if end.error is not None else None,
        interruption=(why or Interruption.SHUTDOWN) if is_abort else None,
        asked=asked,
        trace_headers=asked.trace_headers,
    )


def refused(asked: Asked, refusal: str, error: Exception, now: float) -> RequestReport:
    """Of one that was not accepted."""
    return RequestReport(
        asked.request_id,
        asked.arrival_time,
        REFUSED,
        NOTHING,
        Timings(None, None, now - asked.arrival_time),
        refusal=refusal,
        error=error_line(error),
        asked=asked,
        trace_headers=asked.trace_headers,
    )


@dataclass(frozen=True, slots=True)
class Unread:
    """A request of which the engine saw no more than this. request_id: whatever stood there."""

    request_id: str
    trace_headers: Callable[[], Mapping[str, str]] = dict

    def refused(self, refusal: str, error: Exception, now: float) -> RequestReport:
        """Because of what stood in it."""
        report = self._report(REFUSED, now)
        return replace(report, refusal=refusal, error=error_line(error))

    def left(self, reason: FinishReason, now: float) -> RequestReport:
        """Its client was gone before anything was done."""
        why = Interruption.CLIENT_LEFT if reason is FinishReason.ABORT else None
        return replace(self._report(reason.value, now), interruption=why)

    def _report(self, reason: str, now: float) -> RequestReport:
        return RequestReport(
            _loggable(self.request_id),
            now,
            reason,
            NOTHING,
            Timings(None, None, 0.0),
            trace_headers=self.trace_headers,
        )


def _loggable(request_id: str) -> str:
    """The id, or "" if it is none: then it may hold anything, line breaks included."""
    is_id = len(request_id) <= MAX_REQUEST_ID_LENGTH and all("!" <= each <= "~" for each in request_id)
    return request_id if is_id else ""


def error_line(error: Exception) -> str:
    """What went wrong, in one line. Of what the client sent only numbers are repeated, no text."""
    if isinstance(error, InvalidArgumentError):
        is_number = error.value is None or isinstance(error.value, int | float)
        value = f"={error.value!r}" if is_number else ""
        return _line(f"{error.field}{value}: {error.limit}")
    return _line(str(error) or type(error).__name__)


def _line(text: str) -> str:
    return " ".join(text.split())
