"""Grammars that take their time to compile: who waits for them, and who does not."""

import asyncio
import threading
from typing import Any

import pytest

from engine.errors import InvalidArgumentError, UnavailableError
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.grammar import Grammar
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import SamplingParams
from engine.serving.async_engine import AsyncEngine
from engine.serving.types import OutputDelta
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngineOptions, fake_engine, running_engine
from tests.support.fake_model import EOS, VOCAB_SIZE, FakeRunner, byte_tokenizer

GUIDED = GuidedSpec("regex", "[a-z]+")


class SlowCompiler(GrammarCompiler):
    """Holds every grammar back until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer().to_json(), VOCAB_SIZE, [EOS])
        self.arrived, self.passed = threading.Semaphore(0), threading.Event()

    def compile(self, spec: GuidedSpec) -> Grammar:
        self.arrived.release()
        self.passed.wait()
        return super().compile(spec)


def start(
    engine: AsyncEngine, request_id: str, prompt: str | list[int] = "a", **params: Any
) -> "asyncio.Task[list[OutputDelta]]":
    async def collect() -> list[OutputDelta]:
        asked = SamplingParams(max_new_tokens=3, **params)
        return [delta async for delta in engine.generate(request_id, prompt, asked)]

    return asyncio.create_task(collect())


async def test_nobody_waits_for_the_grammars_of_others() -> None:
    compiler = SlowCompiler()
    grammars: list[object] = []

    def note(step: StepInput) -> None:
        grammars.extend(
            new.sampling.grammar for new in step.new_rows if isinstance(new.sampling, SamplingParams)
        )

    options = FakeEngineOptions(runner=FakeRunner(before_step=note))
    async with running_engine(options, compiler=compiler) as fake:
        guided = [start(fake.engine, f"guided {i}", guided=GUIDED) for i in range(6)]
        await asyncio.to_thread(compiler.arrived.acquire)
        plain = [start(fake.engine, f"plain {i}") for i in range(20)]
        for deltas in await asyncio.gather(*plain):
            assert "".join(delta.text for delta in deltas) == "bcd"
        assert grammars == [None] * 20
        assert not any(task.done() for task in guided)
        compiler.passed.set()
        await asyncio.gather(*guided)
        assert len(grammars) == 26
        assert all(isinstance(grammar, Grammar) for grammar in grammars[20:])


async def test_a_request_whose_grammar_is_being_compiled_can_be_aborted() -> None:
    compiler = SlowCompiler()
    async with running_engine(compiler=compiler) as fake:
        for prompt in ("a", [97]):  # with a tokenizer at work before, and without
            task = start(fake.engine, "guided", prompt, guided=GUIDED)
            await asyncio.to_thread(compiler.arrived.acquire)
            await fake.engine.abort("guided")
            (delta,) = await task
            assert delta.finish is not None
            assert delta.finish.reason is FinishReason.ABORT
        left = start(fake.engine, "left", guided=GUIDED)
        await asyncio.to_thread(compiler.arrived.acquire)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        compiler.passed.set()


async def test_the_engine_stops_although_grammars_are_being_compiled() -> None:
    compiler = SlowCompiler()
    fake = fake_engine(compiler=compiler)
    async with fake.engine:
        task = start(fake.engine, "guided", guided=GUIDED)
        await asyncio.to_thread(compiler.arrived.acquire)
    with pytest.raises(UnavailableError):
        await task
    compiler.passed.set()
    fake.check_is_empty()


async def test_a_prompt_that_cannot_run_is_refused_before_its_grammar_is_compiled() -> None:
    compiler = SlowCompiler()
    async with running_engine(compiler=compiler) as fake:
        with pytest.raises(InvalidArgumentError, match="prompt"):
            await start(fake.engine, "long", "a" * 500, guided=GUIDED)
        assert not compiler.arrived.acquire(blocking=False)


async def test_a_grammar_that_is_none_ends_its_request_alone() -> None:
    compiler = GrammarCompiler(byte_tokenizer().to_json(), VOCAB_SIZE, [EOS])
    async with running_engine(compiler=compiler) as fake:
        with pytest.raises(InvalidArgumentError, match=r"guided\.regex"):
            await start(fake.engine, "wrong", guided=GuidedSpec("regex", "("))
        assert "".join(delta.text for delta in await start(fake.engine, "right", guided=GUIDED)) == "bcd"
        assert fake.engine.metrics.num_rejected["invalid"] == 1


async def test_without_a_compiler_nothing_is_guided() -> None:
    async with running_engine() as fake:
        with pytest.raises(InvalidArgumentError, match="guided='regex'"):
            await start(fake.engine, "guided", guided=GUIDED)
