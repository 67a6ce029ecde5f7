"""`inflight serve` in a process of its own, for the demo and the benchmarks."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_GRPC = re.compile(r"gRPC\s+(\S+:\d+)")
_METRICS = re.compile(r"http://(\S+:\d+)/metrics")
_STARTUP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of each service."""

    grpc: str
    metrics: str


@contextmanager
def server_process(*arguments: str) -> Iterator[Addresses]:
    """A server on free ports of this machine, ended by SIGTERM afterwards.

    arguments: of `inflight serve`. RuntimeError with what it printed if it does not start.
    """
    command = [sys.executable, "-m", "engine.serving.cli", "serve", "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _read_addresses(process)
    finally:
        process.terminate()
        process.wait()


def _read_addresses(process: subprocess.Popen[str]) -> Addresses:
    """Read what it prints until both addresses are there; go on draining it afterwards."""
    assert process.stdout is not None
    killer = threading.Timer(_STARTUP_SECONDS, process.kill)
    killer.start()
    printed = ""
    for line in process.stdout:
        printed += line
        grpc, metrics = _GRPC.search(printed), _METRICS.search(printed)
        if grpc and metrics:
            killer.cancel()
            threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            return Addresses(grpc[1], metrics[1])
    killer.cancel()
    raise RuntimeError(f"the server did not start:\n{printed}")


def _drain(lines: Iterable[str]) -> None:
    for _ in lines:
        pass
