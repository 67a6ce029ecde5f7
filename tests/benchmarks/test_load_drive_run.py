"""Whole runs with client processes of their own, against the scripted server and against the real one."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.errors import LoadError
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.processes import send_all
from benchmarks.loadtest.records import read_run
from benchmarks.loadtest.run import RunSettings, Server, run_load
from benchmarks.loadtest.schedule import make_plan
from benchmarks.loadtest.sweep import SweepSettings, between, sweep
from benchmarks.loadtest.targets import ServedModel, TargetSpec
from benchmarks.loadtest.workload import Workload
from tests.benchmarks.fake_server import VOCAB_SIZE, Script, fake_server

WORKLOAD = Workload(parse_lengths("", "6"), parse_lengths("", "3"), ignore_eos=True)
MODEL = ServedModel("fake", VOCAB_SIZE, 4096)


def _server(port: int) -> Server:
    return Server(TargetSpec("grpc", "127.0.0.1", port), MODEL)


@pytest.mark.parametrize("concurrency", [0, 3])
async def test_the_plan_does_not_depend_on_the_number_of_processes(concurrency: int, tmp_path: Path) -> None:
    arrivals = Arrivals("closed", concurrency=3) if concurrency else Arrivals("poisson", rate=200.0)
    plan = make_plan(WORKLOAD, arrivals, 12, vocab_size=VOCAB_SIZE, seed=0)
    asked = []
    for count in (1, 2):
        async with fake_server(Script(first=0.01)) as (server, port):
            sent = await asyncio.to_thread(
                send_all,
                TargetSpec("grpc", "127.0.0.1", port),
                plan,
                tmp_path,
                num_processes=count,
                concurrency=concurrency,
            )
        assert [record.index for record in sent.records] == list(range(12))
        assert {record.outcome for record in sent.records} == {"success"}
        assert {record.process for record in sent.records} == set(range(count))
        if not concurrency:
            assert [record.scheduled for record in sent.records] == [each.due for each in plan.conversations]
        assert all(record.lag >= 0 for record in sent.records)
        assert sent.loop_lags
        asked.append(sorted(tuple(seen.request.token_ids.ids) for seen in server.seen))
    assert asked[0] == asked[1]


async def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    settings = RunSettings("one", WORKLOAD, Arrivals("poisson", rate=100.0), num_requests=8, num_warm_up=2)
    async with fake_server(Script()) as (server, port):
        run = await asyncio.to_thread(run_load, _server(port), settings, tmp_path / "one")
    assert sorted(path.name for path in run.folder.iterdir()) == ["info.json", "records.jsonl"]
    records, info = read_run(run.folder)
    assert (records, info) == (run.records, run.info)
    assert (info.rate, info.num_planned, info.target) == (100.0, 8, f"grpc://127.0.0.1:{port}")
    assert info.duration == max(record.ended for record in records)
    assert len(server.seen) == 10
    prompts = [tuple(seen.request.token_ids.ids) for seen in server.seen]
    assert len(set(prompts)) == 10  # the warm-up's are its own


async def test_a_sweep_goes_from_one_at_a_time_to_all_at_once(tmp_path: Path) -> None:
    settings = RunSettings("sweep", WORKLOAD, Arrivals(), num_requests=12)
    async with fake_server(Script(first=0.05), max_running=4) as (server, port):
        runs = await asyncio.to_thread(
            lambda: list(sweep(_server(port), settings, SweepSettings((), 2, 4), tmp_path))
        )
    serial, burst, *rates = runs
    assert [run.info.name for run in (serial, burst)] == ["one-at-a-time", "all-at-once"]
    assert (serial.info.concurrency, len(serial.records)) == (1, 4)
    low = 4 / (serial.records[-1].ended - serial.records[0].sent)
    assert low <= 20.0  # a place for 50 ms
    high = 12 / max(record.ended for record in burst.records)
    assert high <= 80.0  # four places
    assert [run.info.rate for run in rates] == pytest.approx(between(low, high, 2), rel=0.05)
    prompts = {tuple(seen.request.token_ids.ids) for seen in server.seen}
    assert len(prompts) == 4 + 3 * 12  # no run repeats another one's


def test_rates_between() -> None:
    assert between(2.0, 10.0, 4) == [4.0, 6.0, 8.0, 10.0]


async def _main(port: int, folder: Path, *options: str) -> int:
    target = ("--target", f"grpc://127.0.0.1:{port}", "--out", str(folder), "--metrics", "none")
    sizes = ("--prompt-tokens", "6", "--output-tokens", "3", "--requests", "10", "--arrival", "at-once")
    arguments: Sequence[str] = ("run", *target, *sizes, *options)
    return await asyncio.to_thread(load.main, arguments)


async def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    async with fake_server(Script(first=0.02)) as (_, port):
        assert await _main(port, tmp_path, "--fail-if", "ttft_p50>30s") == 0
        assert (tmp_path / "run" / "report.html").exists()
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["info"]["num_planned"] == 10
        assert await _main(port, tmp_path, "--fail-if", "ttft_p50>20ms", "--fail-if", "failed>0") == 1
        assert "failed: run: ttft_p50>20ms" in capsys.readouterr().err
        assert await _main(port, tmp_path, "--prompt-tokens", "5000") == 2
        assert "5003: the server takes 4096 tokens" in capsys.readouterr().err
        assert await _main(port, tmp_path, "--rate", "0", "--arrival", "poisson") == 2
        assert "--rate 0.0: above 0" in capsys.readouterr().err
        assert await _main(port, tmp_path, "--fail-if", "nonsense") == 2


async def test_a_client_process_that_fails_says_why(tmp_path: Path) -> None:
    plan = make_plan(WORKLOAD, Arrivals("at-once"), 2, vocab_size=VOCAB_SIZE, seed=0)
    async with fake_server(Script()) as (_, port):
        folder = tmp_path / "missing"
        with pytest.raises(LoadError, match="FileNotFoundError"):
            await asyncio.to_thread(
                send_all, TargetSpec("grpc", "127.0.0.1", port), plan, folder, num_processes=1
            )
