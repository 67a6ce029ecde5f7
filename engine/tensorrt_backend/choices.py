"""What was chosen for every bucket, in memory and on disk."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.candidates import FORMS
from engine.tensorrt_backend.disk_cache import CacheFile, Miss

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A form for a part of a bucket's segments, and the microseconds it takes: of all layers, or of the last
    segment. measured: what every form that was tried takes."""

    form: str
    microseconds: float
    measured: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Selection:
    """layers: by bucket; last: by decode bucket. rejected: forms that differ from the reference, one line
    each."""

    layers: Mapping[int, Choice]
    last: Mapping[int, Choice]
    rejected: tuple[str, ...] = ()

    def routers(self) -> tuple[Router, Router]:
        """(of steps that only decode, of any step)."""
        layers = {bucket: choice.microseconds for bucket, choice in self.layers.items()}
        decode = {bucket: layers[bucket] + choice.microseconds for bucket, choice in self.last.items()}
        return Router(decode), Router(layers)


def choices(selection: Selection) -> Iterable[tuple[str, int, Choice]]:
    """(part, bucket, choice) of all parts and buckets."""
    yield from (("layers", bucket, choice) for bucket, choice in selection.layers.items())
    yield from (("last", bucket, choice) for bucket, choice in selection.last.items())


def write_selection(file: CacheFile, selection: Selection) -> None:
    file.write(json.dumps(asdict(selection), indent=1).encode())


def read_selection(file: CacheFile) -> Selection | None:
    """None, with a line in the log that says why, where there is none for this GPU, model and library."""
    content = file.read()
    if isinstance(content, Miss):
        if content.reason is not None:
            _LOG.info("forms are measured again: %s", content.reason)
        return None
    try:
        parts = json.loads(content)
        selection = Selection(
            _read_part(parts["layers"]), _read_part(parts["last"]), tuple(parts["rejected"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _LOG.info("forms are measured again: %r in what was kept", error)
        return None
    if unknown := {choice.form for _, _, choice in choices(selection)} - FORMS:
        _LOG.info("forms are measured again: there is no form %s any more", ", ".join(sorted(unknown)))
        return None
    return selection


def _read_part(part: Mapping[str, dict[str, Any]]) -> dict[int, Choice]:
    return {int(bucket): Choice(**choice) for bucket, choice in part.items()}
