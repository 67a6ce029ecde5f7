"""What gRPC costs: the same engine read by clients in other processes, and by its own process.

    python -m benchmarks.grpc_overhead
    python -m benchmarks.grpc_overhead --profile --streams 256 --rounds 1
    python -m benchmarks.grpc_overhead --model-dir llama-8b --backend tensorrt --client-processes 4 \\
        --prompt-tokens 128 --max-new-tokens 256

1, 16, 64 and 256 streams that start together, prompts of random ids, outputs of one length, text and ids; one
server process for everything, and the two ways take turns. In process a reader gets every step's tokens
as they come; through gRPC the server sends at the pace that it has by default. The share of a core that the
clients used tells whether they were what was measured. With --profile the server's process is sampled during
the last round (thread_profile.py).
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.grpc_overhead_client import Answer, Clients, clients
from benchmarks.grpc_overhead_server import Load, Server, Settings, Stream, server
from engine.demo import MODEL_DIR

IN_PROCESS, GRPC = "in process", "gRPC"
WAYS = (IN_PROCESS, GRPC)
HEADER = (
    f"{'streams':>7} {'way':11}{'tokens/s':>10}{'TTFT p50':>10}{'TTFT p99':>10}{'ms/token':>10}"
    f"{'messages/s':>12}{'client cores':>14}"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Seconds; client_cores: that the clients kept busy."""

    num_streams: int
    way: str
    tokens_per_second: float
    messages_per_second: float
    first_tokens: tuple[float, ...]
    seconds_per_token: float
    client_cores: float


def measure(num_streams: int, way: str, streams: Sequence[Stream], client_seconds: float = 0.0) -> Measured:
    seconds = max(stream.ended for stream in streams) - min(stream.sent for stream in streams)
    gaps = [(stream.ended - stream.first) / max(1, stream.num_tokens - 1) for stream in streams]
    return Measured(
        num_streams,
        way,
        sum(stream.num_tokens for stream in streams) / seconds,
        sum(stream.num_messages for stream in streams) / seconds,
        tuple(stream.first - stream.sent for stream in streams),
        statistics.median(gaps),
        client_seconds / seconds,
    )


def run(way: str, load: Load, where: Server, readers: Clients) -> Measured:
    if way == IN_PROCESS:
        return _checked(load, measure(load.num_streams, way, where.run(load)))
    answers: list[Answer] = readers.run(load)
    streams = [stream for answer in answers for stream in answer.streams]
    used = sum(answer.cpu_seconds for answer in answers)
    return _checked(load, measure(load.num_streams, way, streams, used))


def _checked(load: Load, measured: Measured) -> Measured:
    assert len(measured.first_tokens) == load.num_streams, "every stream was read"
    return measured


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def rows(runs: Sequence[Measured]) -> Iterator[str]:
    """Medians over rounds; times to the first token of all rounds together."""
    grouped: dict[tuple[int, str], list[Measured]] = defaultdict(list)
    for each in runs:
        grouped[each.num_streams, each.way].append(each)
    for num_streams in sorted({each.num_streams for each in runs}):
        found = {}
        for way in WAYS:
            same = grouped[num_streams, way]
            firsts = [first for each in same for first in each.first_tokens]
            found[way] = [
                statistics.median(each.tokens_per_second for each in same),
                statistics.median(firsts),
                percentile(firsts, 99),
                statistics.median(each.seconds_per_token for each in same),
            ]
            messages = statistics.median(each.messages_per_second for each in same)
            cores = statistics.median(each.client_cores for each in same)
            rate, p50, p99, gap = found[way]
            yield (
                f"{num_streams:7} {way:11}{rate:10,.0f}{p50 * 1000:10.1f}{p99 * 1000:10.1f}{gap * 1000:10.2f}"
                f"{messages:12,.0f}{cores:14.2f}"
            )
        ratios = [grpc / own for grpc, own in zip(found[GRPC], found[IN_PROCESS], strict=True)]
        yield f"{'':7} {'ratio':11}" + "".join(f"{ratio:10.2f}" for ratio in ratios)


def main() -> int:
    args = _parse()
    settings = _settings(args)
    with server(settings) as where, clients(where.ready.address, args.client_processes) as readers:
        print(f"{where.ready.description}; {args.prompt_tokens} + {args.max_new_tokens} tokens a stream")
        seeds = iter(range(sys.maxsize))

        def load(num_streams: int, num_new_tokens: int) -> Load:
            vocab_size = where.ready.vocab_size
            return Load(num_streams, args.prompt_tokens, num_new_tokens, vocab_size, next(seeds))

        for way in WAYS:  # kernels, connections, imports
            run(way, load(max(args.streams), min(8, args.max_new_tokens)), where, readers)
        runs: list[Measured] = []
        for index in range(args.rounds):
            is_profiled = args.profile and index == args.rounds - 1
            for num_streams in args.streams:
                for way in WAYS if index % 2 == 0 else reversed(WAYS):
                    if is_profiled:
                        where.start_profile()
                    runs.append(run(way, load(num_streams, args.max_new_tokens), where, readers))
                    if is_profiled:
                        print(f"\n{num_streams} streams, {way}: the server's process")
                        print("\n".join(where.stop_profile().lines(args.functions)), flush=True)
        print(f"\n{HEADER}   (ms; medians of {args.rounds} rounds)")
        print("\n".join(rows(runs)))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(each) for each in runs], indent=1))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-dir", type=Path, default=MODEL_DIR, help="default: the demo model")
    add("--backend", default="auto", choices=["auto", "torch", "tensorrt"])
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--dtype", default="auto")
    add("--plan-dir", type=Path, help="where TensorRT's plans are kept; default: nowhere")
    add("--streams", type=int, nargs="+", default=[1, 16, 64, 256], metavar="N")
    add("--prompt-tokens", type=int, default=32, metavar="N", help="default: 32")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    add("--rounds", type=int, default=3, help="default: 3")
    add("--client-processes", type=int, default=1, metavar="N", help="default: 1")
    add("--max-num-seqs", type=int, default=256, metavar="N", help="default: 256")
    add("--max-num-batched-tokens", type=int, metavar="N", help="default: the server's")
    add("--max-model-len", type=int, metavar="N", help="default: the model's")
    add("--threads", type=int, metavar="N", help="of a step on a CPU; default: the server's")
    add("--stream-interval", type=float, metavar="SECONDS", help="default: the server's")
    add("--max-messages-per-second", type=float, metavar="N", help="default: the server's")
    add("--profile", action="store_true", help="sample the server's process in the last round")
    add("--functions", type=int, default=12, metavar="N", help="of each thread in a profile; default: 12")
    add("--json", type=Path, metavar="FILE", help="write every run there")
    return parser.parse_args()


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        args.model_dir,
        args.backend,
        args.device,
        args.dtype,
        args.plan_dir,
        args.max_num_seqs,
        args.max_num_batched_tokens,
        args.max_model_len,
        args.threads,
        args.stream_interval,
        args.max_messages_per_second,
    )


if __name__ == "__main__":
    sys.exit(main())
