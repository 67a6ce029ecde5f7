"""The options of `inflight serve`, from argv to the frozen parts that the engine and the server take."""

import argparse
import re
from pathlib import Path
from typing import Any

from engine.config import (
    BACKENDS,
    DEFAULT_LIMITS,
    DEVICES,
    DTYPES,
    CacheOptions,
    EngineOptions,
    choose_limits,
)
from engine.demo import MODEL_DIR
from engine.memory import format_bytes
from engine.serving.commands.environment import default_plan_dir
from engine.serving.options import LOG_FORMATS, LOG_LEVELS, LogOptions, ServerOptions, TracingOptions
from scheduler.policy import POLICIES

_ENGINE = EngineOptions(MODEL_DIR)
_CACHE = CacheOptions()
_SERVER = ServerOptions()
_LOGS = LogOptions()
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
    _add_observing(parser.add_argument_group("logs and traces").add_argument)
    _add_engine(parser.add_argument_group("engine").add_argument)
    _add_backend(parser.add_argument_group("backend").add_argument)
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


def _add_observing(add: Any) -> None:
    add("--log-level", choices=LOG_LEVELS, default=_LOGS.level, help="what is logged")
    add("--log-format", choices=LOG_FORMATS, default=_LOGS.format, help="json: one object a line")
    add("--log-prompts", action="store_true", help="show the beginning of each prompt in its request's line")
    add(
        "--otlp-endpoint",
        metavar="URL",
        help="trace every request to this OpenTelemetry collector, such as http://localhost:4317 (OTLP over "
        "gRPC; needs the extra `tracing`)",
    )


def _add_engine(add: Any) -> None:
    add(
        "--max-model-len",
        type=int,
        metavar="TOKENS",
        help="longest sequence, prompt and output (default: the model's own limit)",
    )
    add_limits(add)
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
    add(
        "--plugin",
        action="append",
        metavar="MODULE",
        default=[],
        help="a Python module, or the path of a .py file, that registers logits processors and stopping "
        "criteria for requests to name; may be given several times",
    )


def add_limits(add: Any) -> None:
    """What shapes the steps, and so the plans for them."""
    torch, tensorrt = DEFAULT_LIMITS["torch"], DEFAULT_LIMITS["tensorrt"]
    add(
        "--max-num-seqs",
        type=int,
        metavar="N",
        help="sequences running at once (default: "
        f"{torch.max_num_seqs}; with TensorRT {tensorrt.max_num_seqs})",
    )
    add(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens computed in one step; prompts are cut into chunks that fit (default: "
        f"{torch.max_num_batched_tokens}; with TensorRT {tensorrt.max_num_batched_tokens})",
    )


def add_plan_dir(add: Any) -> None:
    add(
        "--plan-dir",
        type=Path,
        metavar="DIR",
        default=default_plan_dir(),
        help="where TensorRT's plans and compiled kernels are kept from one start to the next",
    )


def _add_backend(add: Any) -> None:
    add("--device", choices=DEVICES, default=_ENGINE.device, help="auto: cuda where there is one")
    add("--dtype", choices=DTYPES, default=_ENGINE.dtype, help="auto: the checkpoint's; float32 on a CPU")
    add(
        "--backend",
        choices=BACKENDS,
        default=_ENGINE.backend,
        help="auto: tensorrt on a GPU where it can run, which `inflight doctor` tells; else torch",
    )
    add_plan_dir(add)
    add("--no-plan-cache", action="store_true", help="build plans and compile kernels at every start")


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


def engine_options(args: argparse.Namespace, chosen_backend: str | None = None) -> EngineOptions:
    """chosen_backend: the one that will run, once that is known; what is not given takes its defaults.

    Raises ConfigError.
    """
    limits = choose_limits(chosen_backend or "torch", args.max_num_seqs, args.max_num_batched_tokens)
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
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_queued=args.max_num_queued,
        policy=args.policy,
        num_threads=getattr(args, "threads", None),
        step_timeout=args.step_timeout,
        backend=chosen_backend or args.backend,
        plan_dir=None if args.no_plan_cache else args.plan_dir,
        plugins=tuple(args.plugin),
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


def log_options(args: argparse.Namespace) -> LogOptions:
    return LogOptions(args.log_format, args.log_level, args.log_prompts)


def tracing_options(args: argparse.Namespace) -> TracingOptions:
    """Raises ConfigError."""
    return TracingOptions(args.otlp_endpoint)
