"""What Prometheus gets to see."""

import asyncio
import math
import random
import urllib.request
from itertools import accumulate

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as ReferenceHistogram
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import ConfigError, InvalidArgumentError, OverloadedError
from engine.sampling.params import SamplingParams
from engine.serving.metrics import MetricsServer
from engine.serving.metrics.histogram import (
    ITL_BUCKETS,
    LATENCY_BUCKETS,
    PHASE_BUCKETS,
    STEP_TOKENS_BUCKETS,
    TTFT_BUCKETS,
    Histogram,
    token_buckets,
)
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, running_engine
from tests.support.fake_model import FakeRunner
from tests.support.scrape import scrape


def samples(fake: FakeEngine) -> dict[str, float]:
    return scrape(fake.engine.metrics)


async def read(fake: FakeEngine, prompt: str | list[int], **params: object) -> None:
    request_id = f"{prompt}{params}"
    async for _ in fake.engine.generate(request_id, prompt, SamplingParams(**params)):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    "bounds",
    [TTFT_BUCKETS, ITL_BUCKETS, LATENCY_BUCKETS, PHASE_BUCKETS, STEP_TOKENS_BUCKETS, token_buckets(4096)],
)
def test_histogram_counts_as_the_library_does(bounds: tuple[float, ...]) -> None:
    rng = random.Random(0)
    ours = Histogram(bounds)
    reference = ReferenceHistogram("seconds", "", buckets=bounds, registry=CollectorRegistry())
    values = [*bounds, *(rng.lognormvariate(0, 4) for _ in range(500))]
    for value in values:
        count = rng.randint(1, 3)
        ours.observe(value, count)
        for _ in range(count):
            reference.observe(value)
    (metric,) = reference.collect()
    expected = {sample.labels.get("le", sample.name): sample.value for sample in metric.samples}
    found = ours.snapshot()
    assert found.bounds == (*bounds, math.inf)
    assert list(accumulate(found.counts)) == [value for bound, value in expected.items() if "_" not in bound]
    assert found.total == pytest.approx(expected["seconds_sum"])


def test_buckets_of_tokens_end_with_the_longest_sequence() -> None:
    assert token_buckets(128) == (1, 2, 5, 10, 20, 50, 100)
    assert token_buckets(2000)[-2:] == (1000, 2000)


async def test_counters_count_what_happened() -> None:
    async with running_engine(FakeEngineOptions(num_blocks=8)) as fake:
        # 4 outputs of 20 computed tokens, which share 2 blocks and need 3 more each: 14 blocks
        await read(fake, "a" * 9, max_new_tokens=12, num_outputs=4, temperature=1.0)
        await read(fake, "a" * 9, max_new_tokens=2, stop_strings=("b",))
        with pytest.raises(InvalidArgumentError):
            await read(fake, "a", max_new_tokens=1000)
        found, stats = samples(fake), fake.scheduler.stats()
    assert found["inflight_prompt_tokens_total"] == 2 * 9
    assert found["inflight_prompt_tokens_cached_total"] == 8
    assert found["inflight_generation_tokens_total"] in (4 * 12 + 1, 4 * 12 + 2)  # a stop string takes a step
    assert found["inflight_request_success_total length"] == 1
    assert found["inflight_request_success_total stop"] == 1
    assert found["inflight_admission_rejections_total invalid"] == 1
    assert found["inflight_num_preemptions_total growth"] == stats.num_preemptions > 0
    assert found["inflight_preempted_tokens_total growth"] == stats.num_preempted_tokens > 0
    assert found["inflight_prefix_cache_queries_total"] >= 2 * 9
    assert found["inflight_prefix_cache_hits_total"] >= 8
    assert found["inflight_time_to_first_token_seconds_count"] == 4 + 1
    assert found["inflight_inter_token_latency_seconds_count"] in (4 * 11, 4 * 11 + 1)
    assert found["inflight_e2e_request_latency_seconds_count"] == 2
    assert found["inflight_e2e_request_latency_seconds_sum"] > 0


async def test_requests_are_measured_when_they_end() -> None:
    async with running_engine() as fake:
        await read(fake, "a" * 9, max_new_tokens=12, num_outputs=4, temperature=1.0)
        await read(fake, "a" * 9, max_new_tokens=1)
        found = samples(fake)
    for name, total in (
        ("request_prompt_tokens", 2 * 9),
        ("request_prefill_kv_computed_tokens", 2 * 9 - 8),
        ("request_generation_tokens", 4 * 12 + 1),
        ("request_params_n", 4 + 1),
        ("request_params_max_tokens", 12 + 1),
        ("request_num_preemptions", 0),
    ):
        assert (found[f"inflight_{name}_count"], found[f"inflight_{name}_sum"]) == (2, total)
    for name in ("prepare", "queue", "prefill", "decode", "inference"):
        assert found[f"inflight_request_{name}_time_seconds_count"] == 2
    assert found["inflight_request_time_per_output_token_seconds_count"] == 4  # one has a single token

    def total_of(name: str) -> float:
        return found[f"inflight_{name}_seconds_sum"]

    assert total_of("request_inference_time") == pytest.approx(
        total_of("request_prefill_time") + total_of("request_decode_time")
    )
    assert total_of("e2e_request_latency") == pytest.approx(
        total_of("request_queue_time") + total_of("request_inference_time")
    )
    assert 0 < total_of("request_prepare_time") <= total_of("request_queue_time")


async def test_steps_are_measured() -> None:
    async with running_engine() as fake:
        await read(fake, "a" * 40, max_new_tokens=6, num_outputs=2, temperature=1.0)
        found, stats = samples(fake), fake.scheduler.stats()
    steps = found["inflight_engine_steps_total"]
    assert steps == stats.num_steps > 6
    num_tokens = stats.num_decode_rows + stats.num_chunk_tokens
    assert (
        found["inflight_computed_tokens_total decode"] + found["inflight_computed_tokens_total chunk"]
        == num_tokens
        == found["inflight_iteration_tokens_total_sum"]
    )
    assert found["inflight_iteration_tokens_total_count"] == steps
    mixed, decode = (found[f"inflight_step_time_seconds_count {kind}"] for kind in ("mixed", "decode"))
    assert (mixed + decode, mixed > 2, decode > 3) == (steps, True, True)
    for phase in ("schedule", "launch", "wait", "update"):
        assert found[f"inflight_step_phase_seconds_count {phase}"] == steps
    told = found["inflight_step_phase_seconds_count detokenize"]
    assert 6 <= told == found["inflight_step_phase_seconds_count output_queue"] < steps  # chunks tell nothing
    busy = sum(found[f"inflight_step_time_seconds_sum {kind}"] for kind in ("mixed", "decode"))
    assert 0 < found["inflight_device_idle_seconds_total"] < busy
    assert found["inflight_steps_not_waited_for_total"] == steps  # this device computes while it launches
    assert found["inflight_padding_tokens_total"] == found["inflight_ungraphed_steps_total"] == 0


class PaddingRunner(FakeRunner):
    """As if its steps were of 16 tokens."""

    num_padding_tokens = 11
    num_ungraphed_steps = 3


async def test_a_runner_tells_of_its_buckets() -> None:
    async with running_engine(FakeEngineOptions(runner=PaddingRunner())) as fake:
        found = samples(fake)
    assert found["inflight_padding_tokens_total"] == 11
    assert found["inflight_ungraphed_steps_total"] == 3


async def test_gauges_are_of_this_moment() -> None:
    gate = Gate()
    runner = FakeRunner(before_step=gate)
    options = FakeEngineOptions(num_blocks=8, max_num_seqs=1, max_num_queued=1, runner=runner)
    async with running_engine(options) as fake:
        first = asyncio.ensure_future(read(fake, [97] * 8, max_new_tokens=3))
        await gate.arrival()
        second = asyncio.ensure_future(read(fake, [98] * 8, max_new_tokens=3))
        await asyncio.sleep(0)  # token ids need no tokenizer: it is submitted now
        gate.pass_one()
        await gate.arrival()  # at the second step, before which it was queued
        found = samples(fake)
        assert found["inflight_num_requests_running"] == 1
        assert found["inflight_num_requests_waiting"] == 1
        assert found["inflight_kv_cache_usage_perc"] == 3 / 8
        with pytest.raises(OverloadedError):
            await read(fake, "c", max_new_tokens=1)
        assert samples(fake)["inflight_admission_rejections_total overloaded"] == 1
        gate.open()
        await asyncio.gather(first, second)
        found = samples(fake)
        assert found["inflight_num_requests_running"] == found["inflight_num_requests_waiting"] == 0
        assert found["inflight_kv_cache_usage_perc"] == 0


def get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        return str(response.read(), "utf-8")


async def test_metrics_are_served_until_the_server_closes() -> None:
    async with running_engine() as fake:
        await read(fake, "a", max_new_tokens=5)
        server = MetricsServer(fake.engine.metrics.registry, port=0)
        text = await asyncio.to_thread(get, server.address)
        with pytest.raises(ConfigError, match=rf"{server.address}: .*in use"):
            MetricsServer(fake.engine.metrics.registry, port=int(server.address.rpartition(":")[2]))
        server.close()
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(get, server.address)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["inflight_generation_tokens"].samples[0].value == 5
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    assert "process_resident_memory_bytes" in families


async def test_two_engines_share_nothing() -> None:
    async with running_engine() as one, running_engine() as other:
        await read(one, "a", max_new_tokens=3)
        assert samples(one)["inflight_generation_tokens_total"] == 3
        assert samples(other)["inflight_generation_tokens_total"] == 0
