"""Serve a model over gRPC until SIGTERM or Ctrl-C.

Then health turns NOT_SERVING, new requests are refused, and what runs may finish for --grace-seconds.
A second signal ends it at once.
"""

import argparse
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import DEVICES, DTYPES, CacheOptions, EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import ConfigError
from engine.memory import format_bytes
from engine.model.huggingface import load_config
from engine.serving.options import ServerOptions
from scheduler.policy import POLICIES

if TYPE_CHECKING:
    from engine.serving.build import BuiltEngine
    from engine.serving.metrics import MetricsServer

_ENGINE = EngineOptions(MODEL_DIR)
_CACHE = CacheOptions()
_SERVER = ServerOptions()
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_dir",
        metavar="MODEL_DIR",
        nargs="?",
        type=Path,
        help="a Hugging Face directory: config.json, safetensors, tokenizer files (default: the demo model)",
    )
    _add_server(parser.add_argument_group("server").add_argument)
    _add_engine(parser.add_argument_group("engine").add_argument)
    _add_cache(parser.add_argument_group("KV cache").add_argument)


def _add_server(add: Any) -> None:
    add("--host", default=_SERVER.host, help="address to listen on; 0.0.0.0 is every one of this machine")
    add("--port", type=int, default=_SERVER.port, help="gRPC port; 0 takes a free one")
    add(
        "--metrics-port",
        type=int,
        metavar="PORT",
        default=9464,
        help="Prometheus port; 0 takes a free one, -1 turns it off",
    )
    add(
        "--stream-interval",
        type=float,
        metavar="SECONDS",
        default=_SERVER.stream_interval,
        help="send at most one message of an output in this time; tokens that come sooner travel together",
    )
    add(
        "--max-messages-per-second",
        type=float,
        metavar="N",
        default=_SERVER.max_messages_per_second,
        help="of all streams together; with more streams than that allows, the interval grows",
    )
    add(
        "--stall-seconds",
        type=float,
        metavar="SECONDS",
        default=_SERVER.stall_seconds,
        help="abort a request whose client has not read for so long",
    )
    add(
        "--grace-seconds",
        type=float,
        metavar="SECONDS",
        default=30.0,
        help="on SIGTERM, how long running requests may take to finish",
    )
    add(
        "--max-message-bytes",
        type=_size,
        metavar="SIZE",
        default=format_bytes(_SERVER.max_message_bytes),
        help="largest request, such as 64M",
    )
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="what is logged")


def _add_engine(add: Any) -> None:
    add("--device", choices=DEVICES, default=_ENGINE.device, help="auto: cuda where there is one")
    add("--dtype", choices=DTYPES, default=_ENGINE.dtype, help="auto: the checkpoint's; float32 on a CPU")
    add(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="longest sequence, prompt and output (default: the model's own limit)",
    )
    add(
        "--max-num-seqs",
        type=int,
        metavar="N",
        default=_ENGINE.max_num_seqs,
        help="sequences running at once",
    )
    add(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        default=_ENGINE.max_num_batched_tokens,
        help="tokens computed in one step; prompts are cut into chunks that fit",
    )
    add(
        "--max-num-queued",
        type=int,
        metavar="N",
        default=_ENGINE.max_num_queued,
        help="requests that may wait; one more is refused with RESOURCE_EXHAUSTED",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="cores that compute a step on a CPU (default: all but one, which is left to everything else)",
    )
    add(
        "--step-timeout",
        type=float,
        metavar="SECONDS",
        default=_ENGINE.step_timeout,
        help="an engine with work that finishes no step for so long is dead: NOT_SERVING, exit code 1",
    )
    add("--policy", choices=POLICIES, default=_ENGINE.policy, help="which request runs first")


def _add_cache(add: Any) -> None:
    add("--block-size", type=int, metavar="TOKENS", default=_CACHE.block_size, help="tokens in a block")
    add(
        "--kv-cache-bytes",
        type=_size,
        metavar="SIZE",
        help="size of the KV cache, such as 512M or 2G (default: what --kv-cache-fraction gives)",
    )
    add(
        "--kv-cache-fraction",
        type=float,
        metavar="FRACTION",
        default=_CACHE.fraction,
        help="share of the memory left beside the weights that the KV cache may take",
    )
    add("--no-prefix-caching", action="store_true", help="compute every prompt from its first token")


def _size(text: str) -> int:
    """Bytes of "1.5G", "512 MiB" or "4096"; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 512M or 1.5G")
    number, unit = match.groups()
    return int(float(number) * 1024 ** "BKMGT".index(unit.upper() or "B"))


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Raises ConfigError."""
    cache = CacheOptions(
        block_size=args.block_size,
        num_bytes=args.kv_cache_bytes,
        fraction=args.kv_cache_fraction,
        enable_prefix_caching=not args.no_prefix_caching,
    )
    return EngineOptions(
        model_dir=args.model_dir or MODEL_DIR,
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_queued=args.max_num_queued,
        policy=args.policy,
        num_threads=getattr(args, "threads", None),
        step_timeout=args.step_timeout,
        cache=cache,
    )


def server_options(args: argparse.Namespace) -> ServerOptions:
    """Raises ConfigError."""
    return ServerOptions(
        host=args.host,
        port=args.port,
        max_message_bytes=args.max_message_bytes,
        stream_interval=args.stream_interval,
        max_messages_per_second=args.max_messages_per_second,
        stall_seconds=args.stall_seconds,
    )


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
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr for (bytes read, bytes in all), where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("loading weights"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda read, total: bar.update(task, completed=read, total=total)


async def _serve(args: argparse.Namespace, options: ServerOptions, built: "BuiltEngine") -> int:
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
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"try: {_grpcurl(address)}\n", markup=False)
    console.file.flush()


def _grpcurl(address: str) -> str:
    request = '{"prompt": "7 8 9 10", "stopping": {"max_new_tokens": 20}}'
    return f"grpcurl -plaintext -d '{request}' {address} inflight.v1.Generation/Generate"
