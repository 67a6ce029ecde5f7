"""The options of `run` and `sweep`, and what they mean."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.loadtest.arrivals import ARRIVAL_KINDS, Arrivals
from benchmarks.loadtest.dataset import FIELDS, read_dataset, timestamps
from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.lengths import FORMS, parse_lengths
from benchmarks.loadtest.run import RunSettings, Server
from benchmarks.loadtest.share import Limits
from benchmarks.loadtest.sweep import SweepSettings
from benchmarks.loadtest.targets import ServedModel, TargetSpec, ask_model, parse_target
from benchmarks.loadtest.validity import LAG_LIMIT
from benchmarks.loadtest.workload import BehaviourKind, Workload, parse_behaviour, parse_sampling

METRICS_PORT = 9464
BEHAVIOURS: tuple[BehaviourKind, ...] = ("cancel", "slow", "deadline")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What `run` and `sweep` share."""
    _add_target(parser.add_argument_group("target").add_argument)
    _add_workload(parser.add_argument_group("workload").add_argument)
    _add_clients(parser.add_argument_group("clients").add_argument)
    _add_results(parser.add_argument_group("results").add_argument)


def _add_target(add: Any) -> None:
    add("--target", default="grpc://127.0.0.1:50051", help="grpc://HOST:PORT or openai+http://HOST:PORT")
    add("--metrics", metavar="URL", help="where /metrics is, or none (default: derived from the target)")
    add("--no-text", action="store_true", help="grpc: token ids only, so that the server makes no text")
    add("--model", default="", help="openai: its name for the model (default: the first it lists)")
    add("--body", type=json.loads, default={}, metavar="JSON", help="openai: more fields of every request")
    add(
        "--vocab-size",
        type=int,
        metavar="N",
        help="ids are below it (openai: needed for ids)",
    )


def _add_workload(add: Any) -> None:
    add("--requests", type=int, default=200, metavar="N", help="how many, turns of conversations included")
    add("--prompt-tokens", default="512", metavar="LENGTHS", help=FORMS)
    add("--output-tokens", default="256", metavar="LENGTHS", help=FORMS)
    add("--prompt-format", choices=("ids", "text"), default="ids", help="random ids, or about as many words")
    add("--dataset", type=Path, metavar="FILE", help=f"JSON lines with some of {FIELDS}")
    add("--timestamp-unit", type=float, default=1.0, metavar="SECONDS", help="0.001: timestamps are in ms")
    add("--families", type=int, default=0, metavar="K", help="prompts begin with one of K common prefixes")
    add("--family-tokens", type=int, default=256, metavar="N", help="tokens of such a prefix")
    add("--turns", type=int, default=1, metavar="N", help="of a conversation; each replays what was said")
    add("--think", type=float, default=0.0, metavar="SECONDS", help="between an answer and the next turn")
    add(
        "--sampling",
        action="append",
        default=[],
        metavar="[WEIGHT:]NAME=VALUE,…",
        help="such as 3:temperature=0.8,top_p=0.9; several are mixed by weight (default: greedy)",
    )
    add("--cancel", metavar="SHARE:SECONDS", help="this share of the clients cancels after so long")
    add("--slow", metavar="SHARE:SECONDS", help="… waits so long before it reads each message")
    add("--deadline", metavar="SHARE:SECONDS", help="… sets such a deadline")
    add(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="outputs go on to their limit (default: with --output-tokens N, and no dataset)",
    )
    add("--seed", type=int, default=0, help="of the plan: the same seed sends the same")
    add("--content", type=int, default=0, metavar="N", help="another N: other ids, everything else the same")


def _add_clients(add: Any) -> None:
    processes = max(1, min(8, (os.cpu_count() or 1) // 4))
    add("--processes", type=int, default=processes, metavar="N", help="client processes")
    add("--warm-up", type=int, default=0, metavar="N", help="requests before, that count nowhere")
    add("--max-seconds", type=float, metavar="SECONDS", help="nothing is sent after so long")
    add(
        "--grace",
        type=float,
        default=Limits().grace,
        metavar="SECONDS",
        help="after the last sending, until what still runs is ended as incomplete",
    )
    add(
        "--lag-limit",
        type=float,
        default=LAG_LIMIT,
        metavar="SECONDS",
        help="p99 of the tool's own lag, beyond which (and 10 %% of TTFT p50) the result is invalid",
    )


def _add_results(add: Any) -> None:
    add("--out", type=Path, default=Path("load-results"), metavar="FOLDER", help="where results go")
    add("--name", metavar="NAME", help="of the result's folder below it (default: run or sweep)")
    add("--limit", action="append", default=[], metavar="LIMIT", help='of good service: "ttft_p99<=500ms"')
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit status 1 if it holds: "ttft_p99>500ms"; also if a result is invalid',
    )


def add_arrival_options(parser: argparse.ArgumentParser) -> None:
    """Of `run`."""
    add = parser.add_argument_group("arrivals").add_argument
    add("--arrival", choices=ARRIVAL_KINDS, default="poisson", help="when requests, or conversations, come")
    add("--rate", type=float, default=1.0, metavar="PER_SECOND", help="ramp: at its start")
    add("--rate-end", type=float, default=1.0, metavar="PER_SECOND", help="ramp: at its end")
    add("--burstiness", type=float, default=1.0, metavar="SHAPE", help="gamma: below 1 comes in bursts")
    add("--concurrency", type=int, default=1, metavar="N", help="closed: so many at a time")


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Of `sweep`."""
    add = parser.add_argument_group("rates").add_argument
    add("--points", type=int, default=8, metavar="N", help="rates between one at a time and all at once")
    add("--rates", type=_rates, default=(), metavar="R,R,…", help="these rates instead, in requests/s")
    add("--serial-requests", type=int, default=20, metavar="N", help="how many one at a time")


def _rates(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def make_server(args: argparse.Namespace, timeout: float = 30.0) -> Server:
    """Asks the target what it serves. Raises LoadError."""
    parsed = parse_target(args.target)
    model = ask_model(TargetSpec(parsed.kind, parsed.host, parsed.port, model=args.model), timeout)
    target = TargetSpec(
        parsed.kind, parsed.host, parsed.port, text=not args.no_text, model=model.name, body=args.body
    )
    vocab_size = args.vocab_size or model.vocab_size
    if not vocab_size and args.prompt_format == "ids":
        raise OptionError("--vocab-size", "not given", "the server does not tell; or --prompt-format text")
    served = ServedModel(model.name, vocab_size, model.max_model_len, model.server_version)
    port = METRICS_PORT if target.kind == "grpc" else target.port
    url = args.metrics or f"http://{target.host}:{port}/metrics"
    return Server(target, served, None if url == "none" else url, metrics_needed=args.metrics is not None)


def make_settings(args: argparse.Namespace) -> RunSettings:
    """Raises OptionError."""
    if args.processes < 1:
        raise OptionError("--processes", args.processes, "at least 1")
    rows = read_dataset(args.dataset, timestamp_unit=args.timestamp_unit) if args.dataset else ()
    output = parse_lengths("--output-tokens", args.output_tokens)
    ignore_eos = args.ignore_eos
    workload = Workload(
        prompt=parse_lengths("--prompt-tokens", args.prompt_tokens),
        output=output,
        num_turns=args.turns,
        think_seconds=args.think,
        num_families=args.families,
        family_tokens=args.family_tokens,
        sampling=tuple(map(parse_sampling, args.sampling)) or ((1.0, ()),),
        behaviours=tuple(
            parse_behaviour(kind, text) for kind in BEHAVIOURS if (text := getattr(args, kind)) is not None
        ),
        ignore_eos=(output.kind == "fixed" and not rows) if ignore_eos is None else ignore_eos,
        as_text=args.prompt_format == "text",
        dataset=rows,
        content=args.content,
    )
    given = {name: str(value) for name, value in vars(args).items() if value not in (None, [], {})}
    return RunSettings(
        name=args.name or args.command,
        workload=workload,
        arrivals=_arrivals(args, timestamps(rows)),
        num_requests=args.requests,
        seed=args.seed,
        num_processes=args.processes,
        num_warm_up=args.warm_up,
        limits=Limits(args.max_seconds, args.grace),
        lag_limit=args.lag_limit,
        arguments=given,
    )


def _arrivals(args: argparse.Namespace, times: tuple[float, ...]) -> Arrivals:
    if args.command == "sweep":
        return Arrivals("poisson")
    return Arrivals(args.arrival, args.rate, args.rate_end, args.burstiness, args.concurrency, times)


def make_sweep(args: argparse.Namespace) -> SweepSettings:
    """Raises OptionError."""
    return SweepSettings(args.rates, args.points, args.serial_requests)
