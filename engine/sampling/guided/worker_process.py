"""The parent's side of a worker: starts it, asks it, kills it."""

import json
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import UnavailableError
from engine.sampling.guided.messages import receive, send
from engine.sampling.guided.spec import GuidedSpec

_START_SECONDS = 60.0  # a new process on a busy machine, and its vocabulary

# Not `multiprocessing`: its children import the parent's main module, and with it everything that serves.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from engine.sampling.guided.worker import main
main(int(sys.argv[1]))
"""


class WorkerLostError(Exception):
    """The worker was killed, or died; the message says of what. It takes no more work."""


class WorkerTimeoutError(WorkerLostError):
    """It was killed because its time was up."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker needs to begin with. vocab_size and eos_token_ids: the model's.

    memory_bytes: how much more a grammar may take than the worker has with its vocabulary alone.
    """

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    memory_bytes: int


class Worker:
    """A running process. For one thread at a time; `kill` is for any."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Takes as long as Python and the vocabulary need. Raises UnavailableError."""
        self._memory_bytes = setup.memory_bytes
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a client must not be able to write to the server's log
                start_new_session=True,  # Ctrl-C is for the server, which lets requests finish
            )
        try:
            self._exchange(asdict(setup), _START_SECONDS)
        except WorkerLostError as error:
            raise UnavailableError(f"no process to try grammars in: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, spec: GuidedSpec, timeout_seconds: float) -> dict[str, Any]:
        """The answer of `worker`. Raises WorkerLostError, after the time limit at the latest."""
        return self._exchange({"spec": asdict(spec), "timeout_seconds": timeout_seconds}, timeout_seconds)

    def kill(self) -> None:
        """Waits for its end; twice does no harm."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _exchange(self, message: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        try:
            self._socket.settimeout(timeout_seconds)
            send(self._socket, message)
            return receive(self._socket, timeout_seconds)
        except TimeoutError:
            self.kill()
            raise WorkerTimeoutError(f"takes longer than {timeout_seconds:g} s") from None
        except (EOFError, OSError):
            self._process.kill()
            raise WorkerLostError(self._cause_of_death(self._process.wait())) from None

    def _cause_of_death(self, status: int) -> str:
        self._socket.close()
        if status == -signal.SIGABRT:  # what the library does when it is given no memory
            return f"needs more than {self._memory_bytes >> 20} MiB"
        if status == -signal.SIGSEGV:
            return "too deeply nested"
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the process that tries grammars ended with {cause}"
