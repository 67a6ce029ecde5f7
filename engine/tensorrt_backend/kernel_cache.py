"""Kernels that tensorrt_rtx has compiled for this GPU, kept in one IRuntimeCache and on disk.

Without it a start compiles every plan for every bucket again. Full TensorRT compiles when it builds a plan
and has no such cache: then nothing here does anything.
"""

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

from engine.tensorrt_backend.disk_cache import CacheFile, Miss
from engine.tensorrt_backend.library import Library

_LOG = logging.getLogger(__name__)


class KernelCache:
    """One for all engines of a process; threads may attach at once.

    path: the file, or None to keep nothing on disk. gpu, driver: what the kernels were compiled for: other
    ones do not read them.
    """

    def __init__(self, library: Library, path: Path | None, gpu: str, driver: str) -> None:
        key = {"library": library.name, "version": library.version, "gpu": gpu, "driver": driver}
        self._library = library
        self._file = None if path is None else CacheFile(path, key)
        self._lock = threading.Lock()
        self._cache: Any = None
        self._saved: str | None = None  # the digest of what is on disk

    def attach(self, config: Any) -> None:
        """Let contexts made with this IRuntimeConfig take kernels from the cache, and put new ones there."""
        if not self._library.has_runtime_cache:
            return
        with self._lock:
            if self._cache is None:
                self._cache = self._open(config)
        self._library.check(config.set_runtime_cache(self._cache), "setting the kernel cache")

    def save(self) -> None:
        """Write what was compiled since it was read; to be called after start-up."""
        if self._cache is None or self._file is None:
            return
        content = bytes(self._library.check(self._cache.serialize(), "serializing the kernel cache"))
        if self._saved != (digest := _digest(content)):
            with self._file.lock():
                self._file.write(content)
            self._saved = digest

    def _open(self, config: Any) -> Any:
        cache = self._create(config)
        found = Miss(None) if self._file is None else self._file.read()
        if isinstance(found, Miss):
            if found.reason is not None:
                _LOG.info("kernels are compiled again: %s", found.reason)
            return cache
        if not cache.deserialize(found):
            _LOG.info("kernels are compiled again: %s", self._library.failure("the library refuses them"))
            return self._create(config)
        self._saved = _digest(found)
        return cache

    def _create(self, config: Any) -> Any:
        return self._library.check(config.create_runtime_cache(), "creating the kernel cache")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
