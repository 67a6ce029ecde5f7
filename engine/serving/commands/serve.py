"""Serve a model over gRPC until SIGTERM or Ctrl-C.

Then health turns NOT_SERVING, new requests are refused, and what runs may finish for --grace-seconds.
A second signal ends it at once.
"""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.model.huggingface import load_config
from engine.serving.commands.serve_options import add_arguments, engine_options, server_options

if TYPE_CHECKING:
    from engine.loading import PhaseProgress
    from engine.serving.build import BuiltEngine
    from engine.serving.metrics import MetricsServer
    from engine.serving.options import ServerOptions

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    options, server = engine_options(args), server_options(args)
    if not args.grace_seconds >= 0:
        raise ConfigError(f"grace_seconds {args.grace_seconds}: must be at least 0")
    if not -1 <= args.metrics_port <= 65535:
        raise ConfigError(f"metrics_port {args.metrics_port}: must be in [-1, 65535]")
    load_config(options.model_dir)  # what cannot be served is said at once, before torch takes its seconds
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    import uvloop

    from engine.serving.build import build_engine

    with _progress() as progress:
        built = build_engine(options, progress)
    return uvloop.run(_serve(args, server, built))


@contextmanager
def _progress() -> Iterator["PhaseProgress"]:
    """A progress bar on stderr for the phases of the start, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield report


async def _serve(args: argparse.Namespace, options: "ServerOptions", built: "BuiltEngine") -> int:
    from engine.serving.lifecycle import serve
    from engine.serving.metrics import MetricsServer

    metrics = None
    if args.metrics_port >= 0:
        metrics = MetricsServer(built.engine.metrics.registry, args.host, args.metrics_port)
    try:
        return await serve(
            built.engine,
            options,
            grace_seconds=args.grace_seconds,
            on_ready=lambda address: _announce(built, address, metrics),
        )
    finally:
        if metrics is not None:
            metrics.close()


def _announce(built: "BuiltEngine", address: str, metrics: "MetricsServer | None") -> None:
    """Everything one wants to know of a server that has just come up."""
    from rich.console import Console
    from rich.table import Table

    info = built.engine.model_info
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("model", f"{info.name} ({info.architecture}, {info.dtype} on {built.device})")
    table.add_row("longest sequence", f"{info.max_model_len} tokens")
    for name, amount in built.memory.rows():
        table.add_row(name, amount)
    table.add_row("metrics", f"http://{metrics.address}/metrics" if metrics is not None else "off")
    table.add_row("gRPC", address)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"try: {_grpcurl(address)}\n")
    console.file.flush()


def _grpcurl(address: str) -> str:
    request = '{"prompt": "7 8 9 10", "stopping": {"max_new_tokens": 20}}'
    return f"grpcurl -plaintext -d '{request}' {address} inflight.v1.Generation/Generate"
