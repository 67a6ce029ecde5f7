"""What a client counts, and what the server counted: the same, whatever became of the requests."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from engine.errors import InvalidArgumentError, UnavailableError
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import SamplingParams
from inflight import v1
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, Gate, running_engine
from tests.support.fake_model import EOS, VOCAB_SIZE, FakeRunner, byte_tokenizer
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served, served_engine
from tests.support.scrape import scrape

LONG = 4000  # tokens


@dataclass
class Client:
    """Counts what it gets."""

    client: v1.Client
    ends: Counter[str] = field(default_factory=Counter)
    num_outputs: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0

    async def read(self, prompt: str, **options: Any) -> None:
        """One request, to its end."""
        outputs: set[int] = set()
        try:
            async for event in self.client.generate(prompt, token_ids=True, **options):
                outputs.add(event.output_index)
                self.num_tokens += len(event.token_ids)
        except grpc.aio.AioRpcError as error:
            self.ends[error.code().name] += 1
            return
        self.num_outputs += len(outputs)
        self.num_prompt_tokens += event.usage.prompt_tokens
        self.num_cached_tokens += event.usage.cached_tokens
        reason = v1.FinishReason.Name(event.finish.reason)
        self.ends[reason.removeprefix("FINISH_REASON_").lower()] += 1


def scraped(served: Served) -> dict[str, float]:
    return scrape(served.fake.engine.metrics)


def labelled(found: dict[str, float], name: str) -> dict[str, float]:
    """Those of one metric that are above zero, by the values of its labels."""
    prefix = f"inflight_{name} "
    return {key.removeprefix(prefix): n for key, n in found.items() if key.startswith(prefix) and n}


async def test_all_that_ran_to_its_end_adds_up() -> None:
    options = FakeEngineOptions(num_blocks=64, max_num_seqs=4, max_num_queued=100)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options) as served:
        client = Client(served.client)
        await asyncio.gather(
            *(client.read("ab" * (5 + i), max_new_tokens=3 + i) for i in range(20)),
            *(client.read("b" * 9, max_new_tokens=5, n=3, temperature=1.0) for _ in range(3)),
            *(client.read("x", max_new_tokens=20, stop_token_ids=[ord("z")]) for _ in range(4)),
            *(client.read("a", max_new_tokens=10_000) for _ in range(2)),
            client.read("", max_new_tokens=2),
        )
        found, num_steps = scraped(served), served.fake.runner.num_steps
    num_done = 20 + 3 + 4
    assert client.ends == {"length": 23, "stop": 4, "INVALID_ARGUMENT": 3}
    assert labelled(found, "request_success_total") == {"length": 23, "stop": 4}
    assert labelled(found, "admission_rejections_total") == {"invalid": 3}
    assert labelled(found, "request_interruptions_total") == {}
    assert found["inflight_prompt_tokens_total"] == client.num_prompt_tokens
    assert found["inflight_request_prompt_tokens_sum"] == client.num_prompt_tokens
    assert found["inflight_prompt_tokens_cached_total"] == client.num_cached_tokens > 0
    computed = found["inflight_request_prefill_kv_computed_tokens_sum"]
    assert computed == client.num_prompt_tokens - client.num_cached_tokens
    assert found["inflight_generation_tokens_total"] == client.num_tokens
    assert found["inflight_request_generation_tokens_sum"] == client.num_tokens
    assert found["inflight_request_params_n_sum"] == client.num_outputs
    assert found["inflight_time_to_first_token_seconds_count"] == client.num_outputs
    assert found["inflight_inter_token_latency_seconds_count"] == client.num_tokens - client.num_outputs
    for name in ("e2e_request_latency", *(f"request_{part}_time" for part in ("prepare", "queue", "decode"))):
        assert found[f"inflight_{name}_seconds_count"] == num_done
    assert found["inflight_request_time_per_output_token_seconds_count"] == client.num_outputs
    assert found["inflight_engine_steps_total"] == num_steps
    assert found["inflight_iteration_tokens_total_count"] == num_steps


@dataclass(frozen=True)
class Way:
    """To cut a request off. limits: that do it. client: the end that it sees. why: as the server puts it."""

    name: str
    reason: str
    why: str
    client: Counter[str]
    limits: dict[str, float] = field(default_factory=dict)


WAYS = (
    Way("cancel", "abort", "client_left", Counter()),
    Way("abort", "abort", "abort_call", Counter(["abort"])),
    Way("deadline", "deadline", "deadline", Counter(["DEADLINE_EXCEEDED"]), {"timeout": 0.5}),
    Way("time", "time", "max_seconds", Counter(["time"]), {"max_time_seconds": 0.5}),
)


@pytest.mark.parametrize("stage", ["queued", "running"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_a_request_is_cut_off(way: Way, stage: str) -> None:
    gate = Gate()
    runner = FakeRunner(before_step=gate)
    options = FakeEngineOptions(max_num_seqs=1, max_model_len=4096, num_blocks=2048, runner=runner)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options) as served:
        first, client = Client(served.client), Client(served.client)
        if stage == "queued":
            running = asyncio.create_task(first.read("a", max_new_tokens=LONG))
            await gate.arrival()
        task = asyncio.create_task(client.read("a", request_id="it", max_new_tokens=LONG, **way.limits))
        await (gate.arrival() if stage == "running" else until_waiting(served, gate))
        if way.name == "cancel":
            task.cancel()
        elif way.name == "abort":
            await served.client.abort("it")
        while not served.fake.engine.metrics.num_ended.total():
            gate.pass_one()  # requests end between steps
            await served.client.load()
        gate.open()
        await asyncio.wait([task, running] if stage == "queued" else [task])
        found = scraped(served)
    assert client.ends == way.client
    assert first.ends == Counter(["length"] if stage == "queued" else [])
    assert labelled(found, "request_success_total") == first.ends | {way.reason: 1}
    assert labelled(found, "request_interruptions_total") == {f"{way.why} {stage}": 1}
    assert found["inflight_e2e_request_latency_seconds_count"] == 1 + first.num_outputs
    assert found["inflight_request_queue_time_seconds_count"] == 1, "the queued one never ran"
    assert found["inflight_request_time_per_output_token_seconds_count"] == first.num_outputs
    assert found["inflight_prompt_tokens_total"] == 1


async def until_waiting(served: Served, gate: Gate) -> None:
    while not (await served.client.load()).num_waiting:
        gate.pass_one()


async def test_requests_that_are_not_accepted() -> None:
    gate = Gate()
    runner = FakeRunner(before_step=gate)
    options = FakeEngineOptions(max_num_seqs=1, max_num_queued=1, runner=runner)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options) as served:
        client = Client(served.client)
        tasks = [asyncio.create_task(client.read("a", request_id="same", max_new_tokens=3))]
        await gate.arrival()
        await client.read("a", request_id="same", max_new_tokens=3)
        tasks.append(asyncio.create_task(client.read("a", max_new_tokens=3)))
        await until_waiting(served, gate)
        await asyncio.gather(*(client.read("a", max_new_tokens=3) for _ in range(5)))
        await asyncio.gather(*(client.read("a", temperature=-1.0) for _ in range(2)))
        gate.open()
        await asyncio.gather(*tasks)
        found = scraped(served)
    refused = {"ALREADY_EXISTS": 1, "RESOURCE_EXHAUSTED": 5, "INVALID_ARGUMENT": 2}
    assert client.ends == refused | {"length": 2}
    assert labelled(found, "admission_rejections_total") == {"duplicate": 1, "overloaded": 5, "invalid": 2}
    assert found["inflight_e2e_request_latency_seconds_count"] == 2


async def read(fake: FakeEngine, request_id: str, prompt: str | list[int] = "a", **params: Any) -> None:
    asked = SamplingParams(**({"max_new_tokens": 5} | params))
    async for _ in fake.engine.generate(request_id, prompt, asked):
        pass


async def test_a_shutdown_is_told_from_a_client_that_left() -> None:
    gate = Gate()
    options = FakeEngineOptions(max_num_seqs=1, runner=FakeRunner(before_step=gate))
    async with running_engine(options) as fake:
        tasks = [asyncio.create_task(read(fake, name, [97])) for name in ("running", "queued")]
        await gate.arrival()
        draining = asyncio.create_task(fake.engine.drain(grace=0.0))
        while not draining.done():
            gate.pass_one()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        with pytest.raises(UnavailableError):
            await read(fake, "late")
        gate.open()
        found = scrape(fake.engine.metrics)
    interrupted = labelled(found, "request_interruptions_total")
    assert interrupted == {"shutdown running": 1, "shutdown queued": 1}
    assert labelled(found, "admission_rejections_total") == {"unavailable": 1}


async def test_a_request_can_be_cut_off_before_the_engine_has_it() -> None:
    async with running_engine() as fake:
        task = asyncio.create_task(read(fake, "left"))
        await asyncio.sleep(0)  # its prompt is being tokenized
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = scrape(fake.engine.metrics)
    assert labelled(found, "request_interruptions_total") == {"client_left preparing": 1}
    assert labelled(found, "request_success_total") == {"abort": 1}
    assert found["inflight_request_prompt_tokens_count"] == 0


async def test_grammars_are_timed_by_how_they_went() -> None:
    compiler = GrammarCompiler(byte_tokenizer().to_json(), VOCAB_SIZE, [EOS])
    async with running_engine(compiler=compiler) as fake:
        for name in "ab":
            await read(fake, name, guided=GuidedSpec("regex", "[a-z]+"))
        with pytest.raises(InvalidArgumentError):
            await read(fake, "c", guided=GuidedSpec("regex", "("))
        left = asyncio.create_task(read(fake, "d", [97], guided=GuidedSpec("regex", "[0-9]+")))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        await read(fake, "e")
        found = scrape(fake.engine.metrics)
    name = "grammar_compilation_time_seconds_count"
    assert labelled(found, name) == {"compiled": 2, "refused": 1, "abandoned": 1}
    assert found["inflight_grammar_compilation_time_seconds_sum compiled"] > 0
