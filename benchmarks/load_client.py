"""What the load tool itself can hold: 2,000 streams at once, on two cores that it shares with their server.

    python -m benchmarks.load_client

The server is scripted (tests/benchmarks/fake_server.py): it takes no time but for gRPC's, and every message
leaves it when it is due, as far as its own process keeps up. Requests come as a Poisson process over --ramp
seconds, and last until all have been there together. Told are the tool's lag, and how long messages were
under way, from the server's script to the client's record: the server's own lateness is in that too. Exit
status 1 if the aim is missed.
"""

import argparse
import asyncio
import gc
import multiprocessing
import os
import sys
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.processes import Sent, send_all
from benchmarks.loadtest.records import RequestRecord
from benchmarks.loadtest.schedule import make_plan
from benchmarks.loadtest.targets import TargetSpec
from benchmarks.loadtest.workload import Workload

AIM_STREAMS = 2000
AIM_LAG = 0.05  # seconds
FIRST_SECONDS = 0.5


def serve(link: Connection, interval: float) -> None:
    """A scripted server in a process of its own, until the other end of the link closes."""
    import uvloop

    gc.disable()  # its pauses are not what is measured
    uvloop.run(_serve(link, interval))


async def _serve(link: Connection, interval: float) -> None:
    from tests.benchmarks.fake_server import Script, fake_server

    script = Script(first=FIRST_SECONDS, interval=interval)
    async with fake_server(script) as (_, port):
        link.send(port)
        closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(link.fileno(), closed.set)
        await closed.wait()


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load_client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=int, default=AIM_STREAMS, metavar="N")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="client processes")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between tokens")
    parser.add_argument("--ramp", type=float, default=10.0, metavar="SECONDS", help="until all have come")
    parser.add_argument("--hold", type=float, default=10.0, metavar="SECONDS", help="with all of them there")
    args = parser.parse_args()
    num_tokens = round((args.ramp + args.hold) / args.interval)
    sent = _run(args, num_tokens)
    return _report(sent, args.interval, args.streams, os.times().children_user + os.times().children_system)


def _run(args: argparse.Namespace, num_tokens: int) -> Sent:
    workload = Workload(parse_lengths("", "128"), parse_lengths("", str(num_tokens)), ignore_eos=True)
    arrivals = Arrivals("poisson", rate=args.streams / args.ramp)
    plan = make_plan(workload, arrivals, args.streams, vocab_size=1000, seed=0)
    context = multiprocessing.get_context("spawn")
    link, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, args.interval), daemon=True)
    server.start()
    theirs.close()
    try:
        target = TargetSpec("grpc", "127.0.0.1", link.recv())
        with TemporaryDirectory() as folder:
            return send_all(target, plan, Path(folder), num_processes=args.processes)
    finally:
        link.close()
        server.join()


def _report(sent: Sent, interval: float, num_streams: int, cpu_seconds: float) -> int:
    records = sent.records
    done = [record for record in records if record.outcome == "success"]
    seconds = max(record.ended for record in records)
    num_messages = sum(len(record.chunks) for record in records)
    changes = sorted([(each.sent, 1) for each in records] + [(each.ended, -1) for each in records])
    peak = max(accumulate(change for _, change in changes))
    lags, loop_lags = sorted(record.lag for record in records), sorted(sent.loop_lags)
    delays = sorted(delay for record in records for delay in _delays(record, interval))
    print(f"{len(done)} of {num_streams} streams succeeded, {peak} of them at once, in {seconds:.1f} s")
    print(
        f"{num_messages / seconds:,.0f} messages/s; clients and server used {cpu_seconds / seconds:.2f} cores"
    )
    for name, values in (
        ("lag at sending", lags),
        ("lag of the clients' event loops", loop_lags),
        ("messages under way, the server's lateness included", delays),
    ):
        p50, p99 = (values[int(share * (len(values) - 1))] * 1e3 for share in (0.5, 0.99))
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {values[-1] * 1e3:.2f} ms")
    worst = max(lags[-1], loop_lags[-1])
    is_met = len(done) == num_streams and peak >= num_streams and worst < AIM_LAG
    print(f"aim: {num_streams} at once, no lag of {AIM_LAG * 1e3:g} ms: {'met' if is_met else 'MISSED'}")
    return int(not is_met)


def _delays(record: RequestRecord, interval: float) -> list[float]:
    """From when the script was to write each message, had the request come at once, to its record."""
    due = record.sent + FIRST_SECONDS
    return [at - (due + interval * index) for index, (at, _) in enumerate(record.chunks)]


if __name__ == "__main__":
    sys.exit(main())
