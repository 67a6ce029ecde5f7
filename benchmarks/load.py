"""Load on a server of text generation: what it takes, and what its clients feel.

    python -m benchmarks.load run --target grpc://127.0.0.1:50051 --rate 10 --requests 200
    python -m benchmarks.load sweep --requests 400 --limit "ttft_p99<=500ms" --limit "itl_p99<=50ms"
    python -m benchmarks.load compare load-results/sweep other/sweep --plots side-by-side

A run leaves records.jsonl (a line a request), info.json (what was run, with /metrics before and after) and
summary.json in its folder, plots and report.html in the command's. Exit status: 0 done, 1 a --fail-if
condition holds or a result is invalid, 2 a wrong option or no server, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks.loadtest.errors import LoadError, OptionError
from benchmarks.loadtest.knee import find_knee
from benchmarks.loadtest.limits import Condition, parse_condition, parse_limit
from benchmarks.loadtest.options import (
    add_arrival_options,
    add_common_options,
    add_sweep_options,
    make_server,
    make_settings,
    make_sweep,
)
from benchmarks.loadtest.run import Run, run_load
from benchmarks.loadtest.summary import Summary, summarize
from benchmarks.loadtest.sweep import sweep
from benchmarks.loadtest.tables import latencies, outcomes, overview, to_rich
from benchmarks.loadtest.units import show_rate, show_time
from benchmarks.loadtest.verdict import failures


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "compare":
            return _compare(args)
        return _measure(args)
    except LoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one load")
    add_arrival_options(run)
    add_common_options(run)
    rates = commands.add_parser("sweep", help="one at a time, all at once, and rates between; names the knee")
    add_sweep_options(rates)
    add_common_options(rates)
    compare = commands.add_parser("compare", help="runs or sweeps side by side")
    compare.add_argument("paths", nargs="+", type=Path, help="summary.json files, or folders that hold some")
    compare.add_argument("--plots", type=Path, metavar="FOLDER", help="where plots go (default: none)")
    return parser


def _measure(args: argparse.Namespace) -> int:
    """`run` and `sweep`."""
    limits = [parse_limit(text) for text in args.limit]
    conditions = [parse_condition(text) for text in args.fail_if]
    settings = make_settings(args)
    folder = args.out / settings.name
    if args.command == "run":
        runs: Iterable[Run] = (run_load(server, settings, folder) for server in [make_server(args)])
    else:
        plan = make_sweep(args)
        runs = sweep(make_server(args), settings, plan, folder)
    summaries: list[Summary] = []
    was_stopped = False
    for run in runs:
        summaries.append(_tell(run, limits))
        was_stopped = run.was_stopped
    _report(folder, summaries, limits)
    found = _failures(summaries, conditions)
    for text in found:
        print(f"failed: {text}", file=sys.stderr)
    return 130 if was_stopped else int(bool(found))


def _tell(run: Run, limits: Sequence[Condition]) -> Summary:
    """Writes summary.json, and prints a line."""
    summary = summarize(run.folder, limits)
    steady = summary.steady
    ttft = f"TTFT p50 {show_time(steady.ttft.p50)}, p99 {show_time(steady.ttft.p99)}" if steady.ttft else ""
    print(
        f"{summary.info.name}: {summary.info.arrival}: {show_rate(steady.achieved)} req/s, "
        f"{show_rate(steady.output_throughput)} tokens/s, {ttft}: {summary.verdict}",
        flush=True,
    )
    for difference in summary.info.count_differences:
        print(f"  counts differ: {difference}", flush=True)
    return summary


def _report(folder: Path, summaries: Sequence[Summary], limits: Sequence[Condition]) -> None:
    """Tables, the knee, and the page if there is what draws its plots."""
    console = Console()
    wide = Console(width=200) if not console.is_terminal else console
    for table in (overview(summaries), latencies(summaries), outcomes(summaries)):
        wide.print(to_rich(table))
    if len(summaries) > 1:
        print(find_knee(summaries, limits).text)
    if find_spec("matplotlib") is None:
        print('no plots: they need matplotlib (pip install "inflight-engine[load]")')
        return
    from benchmarks.loadtest.html import write_report

    print(f"report: {write_report(folder, summaries)}")


def _failures(summaries: Sequence[Summary], conditions: Sequence[Condition]) -> list[str]:
    """Of a sweep, the runs that offered a rate count: all at once is meant to be too much."""
    judged = [each for each in summaries if each.info.rate is not None or len(summaries) == 1]
    found = [f"{each.info.name}: {text}" for each in judged for text in failures(each, conditions)]
    if conditions:
        found += [f"{each.info.name}: {each.verdict}" for each in judged if each.info.invalid]
    return found


def _compare(args: argparse.Namespace) -> int:
    if args.plots is not None and find_spec("matplotlib") is None:
        raise OptionError("--plots", args.plots, 'needs matplotlib (pip install "inflight-engine[load]")')
    from benchmarks.loadtest.compare import compare

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(compare(args.paths, args.plots))
    return 0


if __name__ == "__main__":
    sys.exit(main())
