"""The server's options. The engine's own are in engine/config.py."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from engine.errors import ConfigError


def default_messages_per_second() -> float:
    """250 for each core: they cost a twentieth of the cores, half of it on the side of local clients.

    At most 5000, half a core, as the server shares one interpreter with the engine.
    """
    return min(250.0 * len(os.sched_getaffinity(0)), 5000.0)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """host, port: where to listen; port 0 takes a free one. max_message_bytes: largest request accepted.

    stream_interval: seconds between two messages of one output; tokens that come sooner travel together. The
    first and the last message are not held back. max_messages_per_second: of all streams together; with so
    many streams that they would send more, the interval grows.
    stall_seconds: how long one message may wait for a client that does not read; then its request is aborted.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_message_bytes: int = 16 << 20
    stream_interval: float = 0.01
    max_messages_per_second: float = field(default_factory=default_messages_per_second)
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port}: must be in [0, 65535]")
        if self.max_message_bytes < 1:
            raise ConfigError(f"max_message_bytes {self.max_message_bytes}: must be at least 1")
        if not 0 <= self.stream_interval <= 10:
            raise ConfigError(f"stream_interval {self.stream_interval}: must be in [0, 10] seconds")
        if not self.max_messages_per_second > 0:
            limit = "must be above 0"
            raise ConfigError(f"max_messages_per_second {self.max_messages_per_second}: {limit}")
        if not self.stall_seconds > 0:
            raise ConfigError(f"stall_seconds {self.stall_seconds}: must be above 0")


LOG_FORMATS = ("console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """format: lines for people, or for programs. prompts: whether the line of a request shows its prompt."""

    format: str = "console"
    level: str = "info"
    prompts: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (("format", self.format, LOG_FORMATS), ("level", self.level, LOG_LEVELS)):
            if value not in choices:
                raise ConfigError(f"log_{name} {value!r}: must be one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """otlp_endpoint: http://HOST:PORT or https://HOST:PORT of a collector that speaks OTLP over gRPC; None
    traces nothing.
    """

    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.otlp_endpoint is None:
            return
        try:
            url = urlsplit(self.otlp_endpoint)
            is_right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:  # brackets, or a port that is none
            is_right = False
        if not is_right:
            limit = "must be http://HOST:PORT, or https:// for TLS"
            raise ConfigError(f"otlp_endpoint {self.otlp_endpoint!r}: {limit}")
