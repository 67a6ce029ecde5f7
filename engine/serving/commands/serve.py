"""Serve a model over gRPC until SIGTERM or Ctrl-C.

Then health turns NOT_SERVING, new requests are refused, and what runs may finish for --grace-seconds.
A second signal ends it at once.
"""

import argparse
import gc
import time
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.model.huggingface import load_config
from engine.serving.commands.progress import start_progress
from engine.serving.commands.serve_options import (
    add_arguments,
    engine_options,
    log_options,
    server_options,
    tracing_options,
)
from engine.serving.logs import configure_logging
from engine.serving.tracing import check_tracing, open_tracing

if TYPE_CHECKING:
    from engine.serving.build import BuiltEngine
    from engine.serving.options import ServerOptions

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    options, server = engine_options(args), server_options(args)
    if not args.grace_seconds >= 0:
        raise ConfigError(f"grace_seconds {args.grace_seconds}: must be at least 0")
    if not -1 <= args.metrics_port <= 65535:
        raise ConfigError(f"metrics_port {args.metrics_port}: must be in [-1, 65535]")
    logs, traces = log_options(args), tracing_options(args)
    check_tracing(traces)
    load_config(options.model_dir)  # what cannot be served is said at once, before torch takes its seconds
    configure_logging(logs)
    import uvloop
    from rich.console import Console

    from engine.backends import choose_backend
    from engine.serving.build import build_engine
    from engine.serving.logs_requests import RequestLog

    options = engine_options(args, choose_backend(options))
    with start_progress(Console(stderr=True)) as progress:
        built = build_engine(options, progress)
    with open_tracing(traces, built.engine.model_info.name) as tracers:
        built.engine.set_observers(RequestLog(with_prompts=logs.prompts), *tracers)
        return uvloop.run(_serve(args, server, built, started))


async def _serve(
    args: argparse.Namespace, options: "ServerOptions", built: "BuiltEngine", started: float
) -> int:
    """started: when the command did, by time.perf_counter."""
    from engine.serving.announcement import announce, log_announcement
    from engine.serving.lifecycle import serve
    from engine.serving.metrics import MetricsServer

    metrics = None
    tell = log_announcement if args.log_format == "json" else announce

    def on_ready(address: str) -> None:
        _settle_garbage()
        seconds = time.perf_counter() - started
        tell(built, address, metrics.address if metrics else None, seconds)

    if args.metrics_port >= 0:
        metrics = MetricsServer(built.engine.metrics.registry, args.host, args.metrics_port)
    try:
        return await serve(built.engine, options, grace_seconds=args.grace_seconds, on_ready=on_ready)
    finally:
        if metrics is not None:
            metrics.close()


def _settle_garbage() -> None:
    """What a start has made lives as long as the process: no full collection has to look at it again.

    With torch imported that is some 190,000 objects, and a tenth of a second in which every thread stands.
    """
    gc.collect()
    gc.freeze()
