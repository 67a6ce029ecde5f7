"""What was chosen, on disk from one start to the next."""

import logging
from pathlib import Path

import pytest

from engine.tensorrt_backend.choices import Choice, Selection, read_selection, write_selection
from engine.tensorrt_backend.disk_cache import CacheFile

SELECTION = Selection(
    layers={
        4: Choice("skinny", 80.0, {"skinny": 80.0, "fused": 95.5}),
        8: Choice("fused", 70.0, {"fused": 70.0}),
    },
    last={4: Choice("skinny", 9.0, {"skinny": 9.0})},
    rejected=("apart, 8 tokens: first segment: relative error nan, at most 0.03 is normal",),
)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    file = CacheFile(tmp_path / "some.forms", {"gpu": "a"})
    assert read_selection(file) is None
    write_selection(file, SELECTION)
    assert read_selection(file) == SELECTION


def test_another_gpu_measures_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_selection(CacheFile(tmp_path / "some.forms", {"gpu": "a"}), SELECTION)
    with caplog.at_level(logging.INFO):
        assert read_selection(CacheFile(tmp_path / "some.forms", {"gpu": "b"})) is None
    assert "forms are measured again" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b'{"layers": {}}',
        b'{"layers": {}, "last": {"4": {"form": "x"}}, "rejected": []}',
        b'{"layers": {"4": {"form": "of another release", "microseconds": 1, "measured": {}}},'
        b' "last": {}, "rejected": []}',
        b"[]",
        b"nothing",
    ],
)
def test_what_cannot_be_used_is_measured_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CacheFile(tmp_path / "some.forms", {"gpu": "a"})
    file.write(content)
    with caplog.at_level(logging.INFO):
        assert read_selection(file) is None
    assert "forms are measured again" in caplog.text


def test_routes_weigh_the_last_segment_for_steps_that_decode() -> None:
    decode, tokens = SELECTION.routers()
    assert decode.used == [4]
    assert tokens.used == [8]  # faster than the bucket of 4 without the last segment
