"""The process that tries grammars first: `prove` in a process that its parent can kill.

It reads a vocabulary, then specs, one at a time, and answers each with the library's grammar or why not. It
ends with its parent: its main thread only reads, and sees the connection close while a grammar is built.
"""

import os
import resource
import socket
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llguidance import LLTokenizer

from engine.sampling.guided.limits import PROOF_STACK_BYTES
from engine.sampling.guided.messages import receive, send
from engine.sampling.guided.proof import RefusedError, prove
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.guided.translation import translate
from engine.sampling.guided.vocabulary import load_vocabulary

_VIRTUAL, _RESIDENT = 0, 1  # fields of /proc/self/statm, in pages


def main(descriptor: int) -> None:
    """descriptor: of the connected socket."""
    with socket.socket(fileno=descriptor) as connection:
        try:
            setup = receive(connection)
            vocabulary = load_vocabulary(setup["tokenizer_json"], setup["vocab_size"], setup["eos_token_ids"])
            _limit_memory(setup["memory_bytes"])
            specs: SimpleQueue[dict[str, Any]] = SimpleQueue()
            threading.stack_size(PROOF_STACK_BYTES)
            threading.Thread(target=_serve, args=(connection, vocabulary, specs), daemon=True).start()
            send(connection, {"ready": True})
            while True:
                request = receive(connection)
                _limit_processor_time(request["timeout_seconds"])
                specs.put(request["spec"])
        except (EOFError, OSError):
            os._exit(0)  # whatever the other thread is in the middle of


def _serve(connection: socket.socket, vocabulary: LLTokenizer, specs: "SimpleQueue[dict[str, Any]]") -> None:
    try:
        while True:
            spec = specs.get()
            send(
                connection,
                _answer(vocabulary, GuidedSpec(spec["kind"], spec["text"], tuple(spec["choices"]))),
            )
    finally:
        os._exit(1)  # a fault of ours, or of the library's: better seen at once than after the time limit


def _answer(vocabulary: LLTokenizer, spec: GuidedSpec) -> dict[str, Any]:
    before = _memory_bytes(_RESIDENT)
    try:
        grammar = translate(spec)
        matcher = prove(vocabulary, spec.kind, grammar)
        num_bytes = max(_memory_bytes(_RESIDENT) - before, 0)
        del matcher  # it was there to be measured
    except (RefusedError, ValueError) as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": "needs too much memory"}
    return {"grammar": grammar, "num_bytes": num_bytes}


def _limit_memory(num_bytes: int) -> None:
    """So many more than now."""
    limit = _memory_bytes(_VIRTUAL) + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_processor_time(seconds: float) -> None:
    """For when the parent is gone, or stopped, and cannot kill."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _memory_bytes(field: int) -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
