"""Log lines, for people or for programs: one for each request, when it is over.

A line that tells of an event has a name and flat fields beside its text. For people the text is printed; as
JSON each line is an object with `time` (ISO 8601, UTC), `level`, `logger`, `event` and the fields. Lines of
other kinds, and of libraries, are of event "message" and have their text as `message`.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from engine.serving.options import LogOptions

_FIELDS = "inflight_fields"  # an attribute of log records
_CONSOLE = "%(asctime)s %(levelname)s %(message)s"


def configure_logging(options: LogOptions) -> None:
    """Everything goes to stderr from now on, Python's warnings too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if options.format == "json" else logging.Formatter(_CONSOLE))
    logging.basicConfig(level=options.level.upper(), handlers=[handler])
    logging.captureWarnings(True)


def with_fields(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """For `extra` of a log call: what a line tells to programs. Fields are JSON's own types, none nested."""
    return {_FIELDS: {"event": event, **fields}}


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, _FIELDS, None)
        if told is None:
            told = {"event": "message", "message": record.getMessage()}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **told,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
