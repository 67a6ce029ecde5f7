"""Requests from a file: JSON lines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loadtest.errors import OptionError

FIELDS = "timestamp, prompt, token_ids, input_length, output_length"


@dataclass(frozen=True)
class DatasetRow:
    """A line: an object with some of FIELDS. What is None, the workload gives.

    timestamp: seconds. prompt: text (`prompt`) or ids (`token_ids`). num_prompt_tokens, num_output_tokens:
    `input_length` and `output_length`, as public traces call them.
    """

    timestamp: float | None = None
    prompt: str | tuple[int, ...] | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None


def read_dataset(path: Path, *, timestamp_unit: float = 1.0) -> tuple[DatasetRow, ...]:
    """timestamp_unit: seconds in a unit of `timestamp` (0.001 for milliseconds). Raises OptionError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("--dataset", path, str(error)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line), timestamp_unit))
        except (ValueError, TypeError, AttributeError) as error:
            raise OptionError("--dataset", f"{path}:{number}", f"an object of {FIELDS}: {error}") from error
    if not rows:
        raise OptionError("--dataset", path, "has no lines")
    return tuple(rows)


def timestamps(rows: tuple[DatasetRow, ...]) -> tuple[float, ...]:
    """Of all rows, if they all have one and it never goes back; else nothing."""
    times = [row.timestamp for row in rows if row.timestamp is not None]
    return tuple(times) if len(times) == len(rows) and times == sorted(times) else ()


def _row(values: dict[str, Any], unit: float) -> DatasetRow:
    timestamp, ids = values.get("timestamp"), values.get("token_ids")
    prompt = values.get("prompt") if ids is None else tuple(int(token) for token in ids)
    if prompt is not None and not prompt:
        raise ValueError("the prompt is empty")
    return DatasetRow(
        None if timestamp is None else float(timestamp) * unit,
        prompt,
        _count(values, "input_length"),
        _count(values, "output_length"),
    )


def _count(values: dict[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if int(value) < 1:
        raise ValueError(f"{name} is below 1")
    return int(value)
