"""What requests ask of sampling and stopping, of the demo model over real gRPC: as transformers answers."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.serving.build import build_engine
from engine.serving.grpc_server import GrpcServer
from engine.serving.options import ServerOptions
from inflight import v1
from inflight.v1 import FinishReason

PROMPTS = ("7 8 9 10", "Mon Tue Wed", "The")
NUM_TOKENS = 12
SECONDS_UNTIL_STUCK = 60.0  # never used up, unless something hangs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[v1.Client]:
    built = build_engine(EngineOptions(MODEL_DIR, device="cpu", dtype="float32", max_num_seqs=16))
    async with built.engine:
        server = GrpcServer(built.engine, ServerOptions(port=0))
        address = await server.start()
        async with v1.Client(address) as client:
            yield client
        await server.stop(grace=1.0)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(str(MODEL_DIR), dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    return loaded


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def token_ids(client: v1.Client, prompt: str, **options: Any) -> list[list[int]]:
    """Of all outputs."""
    options = {"max_new_tokens": NUM_TOKENS, "token_ids": True} | options
    answer = await client.generate_once(prompt, timeout=SECONDS_UNTIL_STUCK, **options)
    return [list(output.token_ids) for output in answer.outputs]


async def once(client: v1.Client, prompt: str, **options: Any) -> v1.GenerateOnceResponse:
    options = {"max_new_tokens": NUM_TOKENS, "token_ids": True} | options
    return await client.generate_once(prompt, timeout=SECONDS_UNTIL_STUCK, **options)


def reference(model: PreTrainedModel, prompt_ids: Sequence[int], **options: Any) -> list[list[int]]:
    """transformers' outputs, without what pads the shorter ones."""
    inputs = torch.tensor([prompt_ids])
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 1} | options
    generate: Any = model.generate  # whose types are wrong
    generated = generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    return [_until_eos(row[len(prompt_ids) :]) for row in generated.tolist()]


def _until_eos(token_ids: list[int]) -> list[int]:
    return token_ids[: token_ids.index(1) + 1] if 1 in token_ids else token_ids


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 10},
    ],
    ids=str,
)
async def test_penalties_and_bans_of_ngrams(
    client: v1.Client, model: PreTrainedModel, prompt: str, options: dict[str, Any]
) -> None:
    prompt_ids = await client.tokenize(prompt)
    assert await token_ids(client, prompt, **options) == reference(model, prompt_ids, **options)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_bad_words(client: v1.Client, model: PreTrainedModel, prompt: str) -> None:
    prompt_ids = await client.tokenize(prompt)
    (usual,) = await token_ids(client, prompt)
    bad = [usual[:1], usual[2:4], usual[1:4]]
    found = await token_ids(client, prompt, bad_word_ids=bad)
    assert found == reference(model, prompt_ids, bad_words_ids=bad)
    assert found != [usual]


async def test_bad_words_as_text(client: v1.Client) -> None:
    usual = (await once(client, "7 8 9 10")).outputs[0].text
    assert "12" in usual
    assert "12" not in (await once(client, "7 8 9 10", bad_words=["12"])).outputs[0].text


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_biases_and_allowed_tokens(client: v1.Client, model: PreTrainedModel, prompt: str) -> None:
    prompt_ids = await client.tokenize(prompt)
    bias = {20: 5.0, 222: -8.0, 30: 7.5}
    found = await token_ids(client, prompt, logit_bias=bias)
    assert found == reference(
        model, prompt_ids, sequence_bias=[[[key], value] for key, value in bias.items()]
    )
    (only,) = await token_ids(client, prompt, allowed_token_ids=[20, 21, 222], ignore_eos=True)
    assert set(only) <= {20, 21, 222}
    assert len(only) == NUM_TOKENS


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_log_probabilities(client: v1.Client, model: PreTrainedModel, prompt: str) -> None:
    answer = await once(client, prompt, logprobs=5, prompt_logprobs=3, repetition_penalty=1.5)
    (output,) = answer.outputs
    prompt_ids, generated = await client.tokenize(prompt), list(output.token_ids)
    every = [*prompt_ids, *generated]
    with torch.no_grad():
        expected = model(torch.tensor([every])).logits[0].log_softmax(-1)
    assert [scored.token_id for scored in answer.prompt_logprobs] == prompt_ids[1:]
    assert [scored.token_id for scored in output.logprobs] == generated
    scores = [(scored, 3) for scored in answer.prompt_logprobs] + [(scored, 5) for scored in output.logprobs]
    for position, (scored, num_top) in enumerate(scores):
        row = expected[position]
        best = row.topk(num_top)
        assert scored.logprob == pytest.approx(float(row[every[position + 1]]), abs=2e-4)
        assert [each.logprob for each in scored.top] == pytest.approx(best.values.tolist(), abs=2e-4)
        gaps = best.values[:-1] - best.values[1:]
        if float(gaps.min()) > 1e-3:
            assert [each.token_id for each in scored.top] == best.indices.tolist()
        if scored.top:
            text = await client.detokenize([scored.top[0].token_id], skip_special_tokens=False)
            assert scored.top[0].text == text
    total = math.fsum(scored.logprob for scored in output.logprobs)
    assert output.finish.cumulative_logprob == pytest.approx(total, abs=1e-3)


async def test_log_probabilities_stream_with_their_tokens(client: v1.Client) -> None:
    options: Any = {"max_new_tokens": NUM_TOKENS, "token_ids": True, "logprobs": 1, "prompt_logprobs": 0}
    events = [event async for event in client.generate("7 8 9 10", timeout=SECONDS_UNTIL_STUCK, **options)]
    for event in events:
        assert [scored.token_id for scored in event.logprobs] == list(event.token_ids)
    scored = [each.token_id for event in events for each in event.prompt_logprobs]
    assert scored == (await client.tokenize("7 8 9 10"))[1:]
    assert events[0].prompt_logprobs, "before any token"
    plain = await once(client, "7 8 9 10")
    assert not plain.outputs[0].logprobs
    assert not plain.outputs[0].finish.HasField("cumulative_logprob")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("width", [2, 4])
async def test_beam_search(client: v1.Client, model: PreTrainedModel, prompt: str, width: int) -> None:
    prompt_ids = await client.tokenize(prompt)
    answer = await once(client, prompt, n=2, beam=v1.Beam(width=width, length_penalty=0.5))
    found = [list(output.token_ids) for output in answer.outputs]
    assert found == reference(
        model, prompt_ids, num_beams=width, num_return_sequences=2, length_penalty=0.5, early_stopping=False
    )
    first, second = (output.finish.beam_score for output in answer.outputs)
    assert first >= second


async def test_a_beam_search_streams_whole_outputs(client: v1.Client) -> None:
    call = client.generate("The", n=2, max_new_tokens=5, beam=v1.Beam(width=3), timeout=SECONDS_UNTIL_STUCK)
    events = [event async for event in call]
    assert [(event.output_index, event.HasField("finish")) for event in events] == [(0, True), (1, True)]


async def test_the_best_of_several(client: v1.Client) -> None:
    options: Any = {"temperature": 2.0, "seed": 7, "logprobs": 0}
    every = (await once(client, "The", n=6, **options)).outputs
    best = (await once(client, "The", n=2, best_of=6, **options)).outputs
    ranked = sorted(every, key=lambda output: output.finish.cumulative_logprob, reverse=True)
    assert len({output.finish.cumulative_logprob for output in every}) == 6
    assert [list(output.token_ids) for output in best] == [list(output.token_ids) for output in ranked[:2]]
    call = client.generate(
        "The", n=2, best_of=6, timeout=SECONDS_UNTIL_STUCK, max_new_tokens=NUM_TOKENS, **options
    )
    events = [event async for event in call]
    assert [event.output_index for event in events] == [0, 1]
    assert [event.text for event in events] == [output.text for output in best]
    assert events[-1].usage.generated_tokens == sum(len(output.token_ids) for output in every)


@pytest.mark.parametrize("options", [{"regex": "[a-f]{3}-[0-9]"}, {"choice": ["yes", "no", "perhaps"]}])
async def test_guided_text(client: v1.Client, options: dict[str, Any]) -> None:
    answer = await once(client, "The", temperature=1.0, seed=3, **options)
    (output,) = answer.outputs
    assert output.finish.reason == FinishReason.FINISH_REASON_STOP
    if "choice" in options:
        assert output.text in options["choice"]
    else:
        assert output.text[3] == "-"
        assert set(output.text[:3]) <= set("abcdef")


async def test_guided_json(client: v1.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["n"],
        "additionalProperties": False,
    }
    answer = await once(client, "The", max_new_tokens=60, json_schema=schema, temperature=1.0, seed=1)
    value = json.loads(answer.outputs[0].text)
    assert 0 <= value["n"] <= 99


async def test_criteria_and_processors_by_name(client: v1.Client) -> None:
    info = await client.model_info()
    assert {"suppress_until", "end_bias"} <= {named.name for named in info.logits_processors}
    assert {"repetition", "token_sequences"} <= {named.name for named in info.stopping_criteria}
    for named in (*info.logits_processors, *info.stopping_criteria):
        assert json.loads(named.parameters_schema)["type"] == "object"
        assert named.description
    (usual,) = await token_ids(client, "7 8 9 10")
    sequences = {"sequences": [usual[2:4]]}
    answer = await once(client, "7 8 9 10", stopping_criteria=[("token_sequences", sequences)])
    (output,) = answer.outputs
    assert list(output.token_ids) == usual[:4]
    assert output.finish.stopping_criterion == "token_sequences"


async def test_an_expression_stops_it_and_its_match_is_cut(client: v1.Client) -> None:
    text = (await once(client, "7 8 9 10")).outputs[0].text
    answer = await once(client, "7 8 9 10", stop_regex=["1[2-9] 1"])
    assert answer.outputs[0].text == text[: text.index("12 1")]
    assert answer.outputs[0].finish.stop_regex == "1[2-9] 1"


async def test_time_ends_a_request_with_what_there_is(client: v1.Client) -> None:
    options: Any = {"ignore_eos": True, "max_time_seconds": 1e-6, "n": 2, "temperature": 1.0}
    answer = await once(client, "The", **options)
    assert [output.finish.reason for output in answer.outputs] == [FinishReason.FINISH_REASON_TIME] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regex": "("}, "guided.regex="),
        ({"json_schema": "{"}, "guided.json_schema="),
        ({"stop_regex": ["a", "(?=b)"]}, "stopping.stop_regex='(?=b)'"),
        ({"logits_processors": ["nope"]}, "sampling.logits_processors[0].name='nope'"),
        ({"stopping_criteria": [("repetition", {"x": 1})]}, "stopping.stopping_criteria[0].parameters.x=1"),
        ({"logit_bias": {100_000: 1.0}}, "sampling.logit_bias=100000"),
        ({"beam": v1.Beam(width=4), "logprobs": 1}, "output.logprobs="),
        ({"best_of": 17, "temperature": 1.0}, "best_of=17"),
    ],
)
async def test_what_cannot_be_done_is_said_with_its_place(
    client: v1.Client, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await once(client, "The", **options)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith(words)


async def test_rows_of_a_batch_mix_freely(client: v1.Client) -> None:
    """Whatever runs beside it, each request gets what it gets alone."""
    requests: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.5},
        {"temperature": 1.0, "seed": 5, "top_k": 20},
        {"temperature": 0.8, "seed": 6, "typical_p": 0.9, "logprobs": 2},
        {"beam": v1.Beam(width=2)},
        {"choice": ["yes", "no"]},
        {"bad_word_ids": [[18], [19, 222]]},
        {"stopping_criteria": [("repetition", {"num_repeats": 2})]},
    ]
    alone = [await token_ids(client, "7 8 9 10", **options) for options in requests]
    calls = [
        client.generate_once("7 8 9 10", max_new_tokens=NUM_TOKENS, token_ids=True, **options)
        for options in requests
    ]
    together = [[list(output.token_ids) for output in (await call).outputs] for call in calls]
    assert together == alone


async def test_a_request_that_leaves_itself_nothing_to_choose_is_told_so(client: v1.Client) -> None:
    """And alone: what runs beside it goes on."""
    beside = asyncio.create_task(token_ids(client, PROMPTS[0]))
    with pytest.raises(grpc.aio.AioRpcError, match="bans and allows leaves nothing") as caught:
        await once(client, PROMPTS[1], allowed_token_ids=[5, 6], no_repeat_ngram_size=1, ignore_eos=True)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert await beside == await token_ids(client, PROMPTS[0])
