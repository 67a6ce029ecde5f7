"""What Prometheus gets to see."""

import asyncio
import random
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as ReferenceHistogram
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import ConfigError, InvalidArgumentError, OverloadedError
from engine.sampling.params import SamplingParams
from engine.serving.metrics import ITL_BUCKETS, LATENCY_BUCKETS, TTFT_BUCKETS, Histogram, MetricsServer
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, running_engine
from tests.support.fake_model import FakeRunner


def samples(fake: FakeEngine) -> dict[str, float]:
    """Name, with labels if there are any, to value."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for metric in fake.engine.metrics.collect()
        for sample in metric.samples
    }


async def read(fake: FakeEngine, prompt: str | list[int], **params: object) -> None:
    request_id = f"{prompt}{params}"
    async for _ in fake.engine.generate(request_id, prompt, SamplingParams(**params)):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("bounds", [TTFT_BUCKETS, ITL_BUCKETS, LATENCY_BUCKETS])
def test_histogram_counts_as_the_library_does(bounds: tuple[float, ...]) -> None:
    rng = random.Random(0)
    ours = Histogram("seconds", "", bounds)
    reference = ReferenceHistogram("seconds", "", buckets=bounds, registry=CollectorRegistry())
    values = [*bounds, *(rng.lognormvariate(0, 4) for _ in range(500))]
    for value in values:
        count = rng.randint(1, 3)
        ours.observe(value, count)
        for _ in range(count):
            reference.observe(value)
    expected = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in reference.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    found = {(s.name, *s.labels.values()): s.value for s in ours.collect().samples}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected)


async def test_counters_count_what_happened() -> None:
    async with running_engine(FakeEngineOptions(num_blocks=8)) as fake:
        # 4 outputs of 20 computed tokens, which share 2 blocks and need 3 more each: 14 blocks
        await read(fake, "a" * 9, max_new_tokens=12, num_outputs=4, temperature=1.0)
        await read(fake, "a" * 9, max_new_tokens=2, stop_strings=("b",))
        with pytest.raises(InvalidArgumentError):
            await read(fake, "a", max_new_tokens=1000)
        found = samples(fake)
    assert found["inflight_prompt_tokens_total"] == 2 * 9
    assert found["inflight_generation_tokens_total"] in (4 * 12 + 1, 4 * 12 + 2)  # a stop string takes a step
    assert found["inflight_request_success_total length"] == 1
    assert found["inflight_request_success_total stop"] == 1
    assert found["inflight_admission_rejections_total invalid"] == 1
    assert found["inflight_num_preemptions_total"] > 0
    assert found["inflight_prefix_cache_queries_total"] >= 2 * 9
    assert found["inflight_prefix_cache_hits_total"] >= 8
    assert found["inflight_time_to_first_token_seconds_count"] == 4 + 1
    assert found["inflight_inter_token_latency_seconds_count"] in (4 * 11, 4 * 11 + 1)
    assert found["inflight_e2e_request_latency_seconds_count"] == 2
    assert found["inflight_e2e_request_latency_seconds_sum"] > 0


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
