"""Compiled grammars, by what was asked: least recently used ones go, and what is being compiled is shared."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from engine.sampling.guided.grammar import Grammar
from engine.sampling.guided.spec import GuidedSpec


class Compiled(NamedTuple):
    grammar: Grammar
    num_bytes: int  # of memory, about


class GrammarCache:
    """For any thread."""

    def __init__(self, max_num_grammars: int, max_num_bytes: int) -> None:
        self._max_num_grammars, self._max_num_bytes = max_num_grammars, max_num_bytes
        self._lock = threading.Lock()
        self._pending: dict[GuidedSpec, Future[Grammar]] = {}
        self._compiled: OrderedDict[GuidedSpec, Compiled] = OrderedDict()
        self._num_bytes = 0

    def get(self, spec: GuidedSpec, compile_it: Callable[[GuidedSpec], Compiled]) -> Grammar:
        """Calls compile_it if nobody has, or does now. Exceptions go to all who wait, and are not kept."""
        with self._lock:
            if (compiled := self._compiled.get(spec)) is not None:
                self._compiled.move_to_end(spec)
                return compiled.grammar
            pending = self._pending.get(spec)
            if pending is None:
                mine = self._pending[spec] = Future()
        if pending is not None:
            return pending.result()
        try:
            compiled = compile_it(spec)
        except BaseException as error:
            self._finish(spec, None)
            mine.set_exception(error)
            raise
        self._finish(spec, compiled)
        mine.set_result(compiled.grammar)
        return compiled.grammar

    def _finish(self, spec: GuidedSpec, compiled: Compiled | None) -> None:
        with self._lock:
            del self._pending[spec]
            if compiled is None:
                return
            self._compiled[spec] = compiled
            self._num_bytes += compiled.num_bytes
            while len(self._compiled) > self._max_num_grammars or self._num_bytes > self._max_num_bytes:
                _, oldest = self._compiled.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
