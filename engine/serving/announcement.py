"""What a server says of itself when it has come up."""

import logging
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from engine.serving.build import BuiltEngine
from engine.serving.logs import with_fields

logger = logging.getLogger("inflight")


def announce(
    built: BuiltEngine,
    address: str,
    metrics_address: str | None,
    seconds: float,
    console: Console | None = None,
) -> None:
    """Print everything one wants to know now. seconds: from the start of the command."""
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(built, address, metrics_address, seconds):
        table.add_row(name, value)
    console.print(table)
    for rejected in built.start.rejected:
        console.print(f"warning: not used, as it differs from the reference: {rejected}")
    console.print(f"try: {_grpcurl(address)}\n")
    console.file.flush()


def log_announcement(built: BuiltEngine, address: str, metrics_address: str | None, seconds: float) -> None:
    """The same for programs, as a line of the log."""
    info = built.engine.model_info
    fields = {
        "model": info.name,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "device": built.device,
        "backend": built.backend,
        "max_model_len": info.max_model_len,
        "grpc_address": address,
        "metrics_address": metrics_address,
        "start_seconds": round(seconds, 3),
    }
    logger.info("serving %s on %s", info.name, address, extra=with_fields("serving", fields))
    for rejected in built.start.rejected:
        logger.warning("not used, as it differs from the reference: %s", rejected)


def _rows(
    built: BuiltEngine, address: str, metrics_address: str | None, seconds: float
) -> Iterator[tuple[str, str]]:
    info = built.engine.model_info
    yield "model", f"{info.name} ({info.architecture}, {info.dtype} on {built.device})"
    yield "backend", built.backend
    yield from built.start.details
    yield "longest sequence", f"{info.max_model_len} tokens"
    yield from built.memory.rows()
    phases = "".join(f"{name} {spent:.1f} s, " for name, spent in built.start.phases)
    yield "start", f"{phases}in all {seconds:.1f} s"
    yield "metrics", f"http://{metrics_address}/metrics" if metrics_address is not None else "off"
    yield "gRPC", address


def _grpcurl(address: str) -> str:
    request = '{"prompt": "7 8 9 10", "stopping": {"max_new_tokens": 20}}'
    return f"grpcurl -plaintext -d '{request}' {address} inflight.v1.Generation/Generate"
