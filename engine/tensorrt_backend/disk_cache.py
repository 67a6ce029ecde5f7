"""One file that can be made again, with a JSON manifest beside it that says what it was made from.

Nothing here fails a start: a file that is missing, stale, damaged or another user's is a miss with a reason,
and one that cannot be written is a warning.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)

Key = Mapping[str, str | int | float | bool | list[int]]
"""What a file was made from, by name; compared field by field."""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why there is nothing to read; None where nothing was ever written."""

    reason: str | None


class CacheFile:
    """The file at `path`, its manifest (.json) and its lock (.lock)."""

    def __init__(self, path: Path, key: Key) -> None:
        self._path = path
        self._manifest = path.with_suffix(".json")
        self._key = dict(key)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes (and threads) out, so that the second one finds what the first has written.

        Where no lock can be taken (a directory that cannot be written, a file system without locks) there
        is none: files are replaced as a whole, so the worst is that two make the same.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._path.with_suffix(".lock"), flags, 0o666)
        except OSError:
            yield
            return
        try:
            self._wait(descriptor)
            yield
        finally:
            os.close(descriptor)  # which unlocks; so does the death of the process

    def read(self) -> bytes | Miss:
        """The content, if it was made from this key and is whole."""
        try:
            manifest = json.loads(_read_own(self._manifest))
            content = _read_own(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return Miss(None)
        except OSError as error:
            return Miss(f"it cannot be read: {error}")
        except ValueError as error:
            return Miss(f"damaged manifest: {error}")
        if not isinstance(manifest, dict) or not isinstance(manifest.get("key"), dict):
            return Miss("damaged manifest")
        if difference := _difference(manifest["key"], self._key):
            return Miss(difference)
        if manifest.get("num_bytes") != len(content):
            return Miss(f"damaged: {len(content)} bytes instead of {manifest.get('num_bytes')}")
        if manifest.get("sha256") != hashlib.sha256(content).hexdigest():
            return Miss("damaged: not the bytes that were written")
        return content

    def write(self, content: bytes) -> bool:
        """Replaces file and manifest. Where that is impossible, logs a warning and returns False."""
        digest = hashlib.sha256(content).hexdigest()
        manifest = {"key": self._key, "num_bytes": len(content), "sha256": digest}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._path, content)
            _replace(self._manifest, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            _LOG.warning(
                "cannot write %s: %s. The server works, but the next start makes it again: free some disk "
                "space or give a cache directory that can be written",
                self._path,
                error.strerror or error,
            )
            return False
        return True

    def _wait(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for another process that makes %s", self._path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            _LOG.debug("no lock for %s: %s", self._path, error)


def _difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in names)


def _read_own(path: Path) -> bytes:
    """What is cached runs as code: never another user's (root's is as good as our own)."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to another user")
        return file.read()


def _replace(path: Path, content: bytes) -> None:
    """A reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
