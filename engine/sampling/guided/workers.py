"""A few workers, started when there is work, replaced when they are lost."""

import threading
from typing import Any

from engine.errors import UnavailableError
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.guided.worker_process import Worker, WorkerLostError, WorkerSetup, WorkerTimeoutError

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
            if (worker := self._take_idle()) is not None:
                try:
                    return self._ask(worker, spec, timeout_seconds)
                except WorkerTimeoutError:
                    raise
                except WorkerLostError:
                    pass  # perhaps something killed it while it was idle
            return self._ask(self._start(), spec, timeout_seconds)

    def close(self) -> None:
        """Kills them all; who waits for one gets UnavailableError."""
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, set()
        for worker in running:
            worker.kill()

    def _ask(self, worker: Worker, spec: GuidedSpec, timeout_seconds: float) -> dict[str, Any]:
        try:
            answer = worker.ask(spec, timeout_seconds)
        except WorkerLostError as error:
            with self._lock:
                self._running.discard(worker)
                if self._is_closed:
                    raise UnavailableError(_CLOSED) from error
            raise
        with self._lock:
            self._idle.append(worker)
        return answer

    def _take_idle(self) -> Worker | None:
        with self._lock:
            return self._idle.pop() if self._idle and not self._is_closed else None

    def _start(self) -> Worker:
        worker = Worker(self._setup)
        with self._lock:
            if not self._is_closed:
                self._running.add(worker)
                return worker
        worker.kill()
        raise UnavailableError(_CLOSED)
