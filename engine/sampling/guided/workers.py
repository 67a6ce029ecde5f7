"""A few workers, started when there is work, replaced when they are lost."""

import threading
from typing import Any

from engine.errors import UnavailableError
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.guided.worker_process import Worker, WorkerLostError, WorkerSetup

_CLOSED = "the server is shutting down"


class WorkerPool:
    """At most max_num_workers processes, so that as many grammars that never end hold nobody up.

    Any thread may `ask`; more threads than workers wait for each other.
    """

    def __init__(self, setup: WorkerSetup, max_num_workers: int) -> None:
        self._setup = setup
        self._free = threading.BoundedSemaphore(max_num_workers)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._running: set[Worker] = set()
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        with self._lock:
            return [worker.pid for worker in self._running]

    def ask(self, spec: GuidedSpec, timeout_seconds: float) -> dict[str, Any]:
        """See Worker.ask. Raises WorkerLostError, and UnavailableError after `close`."""
        with self._free:
            worker = self._take()
            try:
                answer = worker.ask(spec, timeout_seconds)
            except WorkerLostError as error:
                if self._forget(worker):
                    raise UnavailableError(_CLOSED) from error
                raise
            with self._lock:
                self._idle.append(worker)
            return answer

    def close(self) -> None:
        """Kills them all; who waits for one gets UnavailableError."""
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, set()
        for worker in running:
            worker.kill()

    def _take(self) -> Worker:
        with self._lock:
            if self._is_closed:
                raise UnavailableError(_CLOSED)
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                self._running.discard(worker)
        worker = Worker(self._setup)
        with self._lock:
            self._running.add(worker)
            is_closed = self._is_closed
        if is_closed:
            worker.kill()
        return worker

    def _forget(self, worker: Worker) -> bool:
        """Whether the pool was closed."""
        with self._lock:
            self._running.discard(worker)
            return self._is_closed
