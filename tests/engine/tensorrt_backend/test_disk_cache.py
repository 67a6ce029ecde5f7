"""A file and its manifest (what can go wrong with them: test_plan_cache.py)."""

from pathlib import Path
from threading import Event, Thread

from engine.tensorrt_backend.disk_cache import CacheFile, Miss


def test_a_reader_without_the_lock_never_gets_a_mixture(tmp_path: Path) -> None:
    file, done = CacheFile(tmp_path / "x.bin", {"key": 1}), Event()
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]

    def write() -> None:
        for i in range(100):
            file.write(contents[i % 2])
        done.set()

    writer = Thread(target=write)
    writer.start()
    while not done.is_set():
        found = file.read()
        assert isinstance(found, Miss) or found in contents
    writer.join()
    assert file.read() == contents[1]
