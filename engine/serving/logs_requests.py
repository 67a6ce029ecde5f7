"""The one line of each request: why it ended, what it took, what it made."""

import logging
from itertools import islice
from typing import Any

from engine.serving.intake import Asked
from engine.serving.logs import with_fields
from engine.serving.request_report import REFUSED, RequestReport
from scheduler.request import FinishReason

MAX_PROMPT_CHARS = 500  # of a prompt, where prompts are logged
MAX_PROMPT_TOKENS = 100

_WARNINGS = (FinishReason.ERROR.value,)

logger = logging.getLogger("inflight")


class RequestLog:
    """Logs how each request went, at level info, or warning if the engine failed it.

    with_prompts: the beginning of each prompt too. Otherwise no text of a client is, not even in errors.
    """

    def __init__(self, *, with_prompts: bool = False) -> None:
        self._with_prompts = with_prompts

    def __call__(self, report: RequestReport) -> None:
        level = logging.WARNING if report.reason in _WARNINGS else logging.INFO
        if not logger.isEnabledFor(level):
            return
        fields, text = request_fields(report), _text(report)
        if self._with_prompts and report.asked is not None:
            prompt = _prompt_fields(report.asked)
            fields |= prompt
            text += "".join(f"; {name}: {value!r}" for name, value in prompt.items())
        logger.log(level, "%s", text, extra=with_fields("request", fields))


def request_fields(report: RequestReport) -> dict[str, Any]:
    """Seconds are since the arrival; null is what never happened."""
    usage, timings = report.usage, report.timings
    return {
        "request_id": report.request_id,
        "reason": report.reason,
        "refusal": report.refusal,
        "error": report.error,
        "interruption": report.interruption.value if report.interruption is not None else None,
        "num_prompt_tokens": usage.num_prompt_tokens,
        "num_cached_tokens": usage.num_cached_tokens,
        "num_generated_tokens": usage.num_generated_tokens,
        "num_preemptions": report.num_preemptions,
        "queued_seconds": _rounded(timings.queued),
        "first_token_seconds": _rounded(timings.first_token),
        "total_seconds": _rounded(timings.total),
    }


def _text(report: RequestReport) -> str:
    name = f"request {report.request_id or '-'}"
    error = f" ({report.error})" if report.error is not None else ""
    if report.reason == REFUSED:
        return f"{name}: refused, {report.refusal}{error}"
    usage, timings = report.usage, report.timings
    why = f"; because: {report.interruption.value}" if report.interruption is not None else ""
    preempted = f"; preempted {report.num_preemptions} times" if report.num_preemptions else ""
    return (
        f"{name}: {report.reason}; tokens: {usage.num_prompt_tokens} prompt, "
        f"{usage.num_cached_tokens} cached, {usage.num_generated_tokens} generated; "
        f"seconds: {_seconds(timings.queued)} queued, "
        f"{_seconds(timings.first_token)} to first token, {_seconds(timings.total)} in all"
        f"{preempted}{why}{error}"
    )


def _prompt_fields(asked: Asked) -> dict[str, Any]:
    if isinstance(asked.prompt, str):
        return {"prompt": asked.prompt[:MAX_PROMPT_CHARS]}
    return {"prompt_token_ids": list(islice(asked.prompt, MAX_PROMPT_TOKENS))}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"
