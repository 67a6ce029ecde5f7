"""The real server, engine and metrics, but for the device: what it counts is what its clients counted."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.lengths import parse_lengths
from benchmarks.loadtest.run import Run, RunSettings, Server, run_load
from benchmarks.loadtest.targets import ServedModel, ask_model, parse_target
from benchmarks.loadtest.workload import Behaviour, Workload
from engine.serving.metrics import MetricsServer
from tests.support.fake_engine import FakeEngineOptions
from tests.support.fake_model import VOCAB_SIZE, FakeRunner
from tests.support.grpc_server import served_engine

STEP_SECONDS = 0.004  # so that deadlines pass, and clients cancel, in the middle of an output
LENGTH = 'inflight_request_success_total{finished_reason="length"}'


@asynccontextmanager
async def _served(max_num_queued: int) -> AsyncIterator[Server]:
    runner = FakeRunner(before_step=lambda step: time.sleep(STEP_SECONDS))
    options = FakeEngineOptions(num_blocks=512, max_num_queued=max_num_queued, runner=runner)
    async with served_engine(options) as served:
        metrics = MetricsServer(served.fake.engine.metrics.registry, port=0)
        target = parse_target(f"grpc://{served.address}")
        try:
            model = await asyncio.to_thread(ask_model, target, 30.0)
            assert model == ServedModel("fake", VOCAB_SIZE, 128, model.server_version)
            yield Server(target, model, f"http://{metrics.address}/metrics", metrics_needed=True)
        finally:
            metrics.close()


async def _run(server: Server, workload: Workload, num_requests: int, folder: Path) -> Run:
    settings = RunSettings(
        "real", workload, Arrivals("at-once"), num_requests, num_warm_up=2, num_processes=2
    )
    return await asyncio.to_thread(run_load, server, settings, folder)


def _growth(run: Run, key: str) -> float:
    return run.info.metrics_after[key] - run.info.metrics_before[key]


async def test_what_ran_to_its_end_and_what_was_refused(tmp_path: Path) -> None:
    workload = Workload(
        parse_lengths("", "uniform:4:20"), parse_lengths("", "uniform:1:20"), num_families=2, family_tokens=12
    )
    async with _served(max_num_queued=16) as server:
        run = await _run(server, workload, 80, tmp_path)
    outcomes = Counter(record.outcome for record in run.records)
    assert run.info.count_differences == ()
    assert outcomes["rejected"] > 0
    assert outcomes["success"] >= 24
    assert outcomes.total() == outcomes["success"] + outcomes["rejected"] == 80
    done = [record for record in run.records if record.outcome == "success"]
    assert _growth(run, LENGTH) == sum(record.finish_reason == "length" for record in done)
    assert _growth(run, "inflight_generation_tokens_total") == sum(each.num_output_tokens for each in done)
    assert _growth(run, "inflight_prompt_tokens_total") == sum(each.num_prompt_tokens for each in done)
    assert (
        _growth(run, "inflight_prefix_cache_hits_total") == sum(each.num_cached_tokens for each in done) > 0
    )


async def test_clients_that_leave_and_deadlines_that_pass(tmp_path: Path) -> None:
    workload = Workload(
        parse_lengths("", "10"),
        parse_lengths("", "60"),
        behaviours=((0.3, Behaviour("cancel", 0.15)), (0.3, Behaviour("deadline", 0.1))),
        ignore_eos=True,
    )
    async with _served(max_num_queued=64) as server:
        run = await _run(server, workload, 40, tmp_path)
    outcomes = Counter(record.outcome for record in run.records)
    assert run.info.count_differences == ()
    assert set(outcomes) == {"success", "cancelled", "deadline"}
    assert _growth(run, LENGTH) == outcomes["success"]
    ended = sum(
        _growth(run, key)
        for key in run.info.metrics_after
        if key.startswith("inflight_request_success_total")
    )
    left = [record for record in run.records if record.outcome != "success"]
    assert outcomes["success"] < ended <= 40
    assert any(record.chunks for record in left)
