"""The demo model in bfloat16, whose margins are clear, by every form of the segments: the tokens are those of
float32 on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.backends import build_backend
from engine.config import CacheOptions, EngineOptions
from engine.demo import MODEL_DIR
from engine.demo.tasks import TASKS
from engine.sampling.params import SamplingParams
from engine.tensorrt_backend.candidates import BLAS, SKINNY, TORCH, Candidates
from engine.tensorrt_backend.segments import SegmentForm
from tests.engine.conftest import Server

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams()
NUM_SEQS, BUDGET = 16, 160


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    return EngineOptions(
        MODEL_DIR,
        dtype="bfloat16",
        max_num_seqs=NUM_SEQS,
        max_num_batched_tokens=BUDGET,
        device="cuda",
        backend="tensorrt",
        plan_dir=tmp_path_factory.mktemp("plans"),
        cache=CacheOptions(num_bytes=64 << 20),
    )


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Two of each task, some of them longer than the token budget."""
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    rng = Random(9)

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    texts = [task.draw_prompt(rng, count) for task in TASKS.values() for _ in range(2)]
    return [tokenizer.encode(text).ids for text in texts]


@pytest.fixture(scope="module")
def expected(options: EngineOptions, prompts: list[list[int]]) -> list[list[int]]:
    """By the torch backend on the CPU, in float32."""
    on_cpu = replace(options, device="cpu", backend="torch", dtype="float32", plan_dir=None)
    return _serve(on_cpu, prompts)


def _serve(options: EngineOptions, prompts: list[list[int]], **how: Any) -> list[list[int]]:
    server = Server(build_backend(options), options.max_num_seqs, options.max_num_batched_tokens)
    token_ids: list[list[int]] = server.serve(prompts, GREEDY, num_new_tokens=48, **how).texts
    return token_ids


def test_as_measured(options: EngineOptions, prompts: list[list[int]], expected: list[list[int]]) -> None:
    assert _serve(options, prompts, steps_in_flight=2) == expected
    assert len({tuple(text) for text in expected}) > len(TASKS)


@pytest.mark.parametrize("form", [form.value for form in SegmentForm] + [BLAS, SKINNY, TORCH])
def test_by_one_form_alone(
    form: str,
    options: EngineOptions,
    prompts: list[list[int]],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Where a form has no bucket (marked ones beyond 16 tokens, skinny beyond 128), another takes over."""
    names: Callable[[Candidates, int], list[str]] = Candidates.names

    def only(candidates: Candidates, bucket: int) -> list[str]:
        all_names = names(candidates, bucket)
        return [form] if form in (*all_names, TORCH) else all_names

    monkeypatch.setattr(Candidates, "names", only)
    assert options.plan_dir is not None
    for path in options.plan_dir.glob("*.forms"):
        path.unlink()  # what was measured among all forms
    assert _serve(options, prompts, steps_in_flight=2) == expected


def test_preemption_and_prefix_hits(
    options: EngineOptions, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    built = build_backend(replace(options, max_model_len=512, cache=CacheOptions(num_bytes=1 << 19)))
    server = Server(built, options.max_num_seqs, options.max_num_batched_tokens)
    short = [(prompt, text) for prompt, text in zip(prompts, expected, strict=True) if len(prompt) < 200]
    for _ in range(2):
        served = server.serve([prompt for prompt, _ in short], GREEDY, num_new_tokens=48, steps_in_flight=2)
        assert served.texts == [text for _, text in short]
    assert served.stats.num_preemptions > 0
    assert sum(summary.num_cached_tokens for summary in served.summaries.values()) > 0
