"""How often streams send.

A message costs about 0.1 ms of a core, however many tokens it carries. With many streams, a message for every
token would take that from the engine, which shares the interpreter with the server, and on a CPU the cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Pacer:
    """The interval between two messages of an output, in seconds, for all streams of a server.

    It is min_interval as long as all of them together send no more than max_messages_per_second, and longer,
    in proportion to their number, from there on.
    """

    def __init__(self, min_interval: float, max_messages_per_second: float) -> None:
        self._min_interval = min_interval
        self._seconds_per_message = 1 / max_messages_per_second
        self._num_outputs = 0

    def interval(self) -> float:
        return max(self._min_interval, self._num_outputs * self._seconds_per_message)

    @contextmanager
    def stream(self, num_outputs: int) -> Iterator[None]:
        """While a stream of so many outputs is being sent."""
        self._num_outputs += num_outputs
        try:
            yield
        finally:
            self._num_outputs -= num_outputs
