"""Messages to the engine's types and back, without a server."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from engine.errors import InvalidArgumentError
from engine.sampling.params import MAX_OUTPUTS, MAX_STOP_STRING_LENGTH, SamplingParams
from engine.serving.request_params import field_path
from engine.serving.requests import parse_generate, parse_request_id, parse_text, parse_token_ids
from engine.serving.responses import delta_message, finish_message, load_message, model_message, once_message
from engine.serving.types import (
    EngineLoad,
    ModelInfo,
    NamedInfo,
    OutputDelta,
    OutputFinish,
    OutputOptions,
    Timings,
    TokenLogprob,
    Usage,
)
from inflight import v1
from scheduler.request import FinishReason

INFO = ModelInfo(
    name="tiny",
    architecture="LlamaForCausalLM",
    vocab_size=100,
    max_model_len=64,
    dtype="float32",
    tokenizer_sha256="0" * 64,
    eos_token_ids=(2,),
    max_prompt_chars=640,
    block_size=16,
    policy="fcfs",
    max_num_seqs=8,
    max_num_queued=4,
)


def test_what_is_not_set_takes_the_defaults_of_the_engine() -> None:
    arguments = parse_generate(v1.GenerateRequest(prompt="a"), INFO)
    assert arguments.params == SamplingParams()
    assert arguments.output == OutputOptions()
    assert arguments.prompt == "a"
    assert arguments.priority == 0


def test_ids_that_the_server_makes_are_valid_and_differ() -> None:
    request = v1.GenerateRequest(prompt="a")
    first, second = (parse_generate(request, INFO).request_id for _ in range(2))
    assert first != second
    assert parse_request_id(first) == first


def test_every_field_arrives() -> None:
    params = SamplingParams(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        seed=2**64 - 1,
        num_outputs=2,
        max_new_tokens=7,
        min_new_tokens=1,
        stop_strings=("x", "y"),
        stop_token_ids=(4, 5),
        ignore_eos=True,
        include_stop=True,
    )
    request = v1.make_request(
        [1, 2],
        request_id="r",
        n=2,
        priority=-3,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        seed=2**64 - 1,
        max_new_tokens=7,
        min_new_tokens=1,
        stop_strings=["x", "y"],
        stop_token_ids=[4, 5],
        ignore_eos=True,
        include_stop=True,
        text=False,
        token_ids=True,
        echo=True,
    )
    arguments = parse_generate(request, INFO)
    assert arguments.params == params
    assert (arguments.request_id, arguments.prompt, arguments.priority) == ("r", [1, 2], -3)
    assert arguments.output == OutputOptions(text=False, token_ids=True, echo=True)


def test_zeros_are_not_taken_for_unset() -> None:
    with pytest.raises(InvalidArgumentError, match="max_new_tokens=0"):
        parse_generate(v1.make_request("a", max_new_tokens=0), INFO)
    with pytest.raises(InvalidArgumentError, match=r"top_p=0\.0"):
        parse_generate(v1.make_request("a", top_p=0), INFO)
    with pytest.raises(InvalidArgumentError, match="n=0"):
        parse_generate(v1.make_request("a", n=0), INFO)
    assert parse_generate(v1.make_request("a", seed=0), INFO).params.seed == 0


def test_errors_name_the_field_as_the_message_does() -> None:
    assert field_path("top_p") == "sampling.top_p"
    assert field_path("stop_strings") == "stopping.stop_strings"
    assert field_path("prompt") == "prompt"
    assert field_path("n") == "n"


@pytest.mark.parametrize("group", ["sampling", "stopping", "output", ""])
def test_a_field_that_the_server_does_not_know_is_refused(group: str) -> None:
    field_99 = b"\x98\x06\x01"
    request = v1.GenerateRequest(prompt="a")
    part = getattr(request, group) if group else request
    part.MergeFromString(field_99)
    with pytest.raises(InvalidArgumentError, match="#99"):
        parse_generate(request, INFO)


def test_also_deep_inside() -> None:
    field_99 = b"\x98\x06\x01"
    request = v1.make_request("a", logits_processors=["x"], beam=v1.Beam(width=2), choice=["a"])
    request.sampling.beam.MergeFromString(field_99)
    with pytest.raises(InvalidArgumentError, match=r"sampling\.beam\.#99"):
        parse_generate(request, INFO)
    request.sampling.ClearField("beam")
    request.sampling.logits_processors[0].MergeFromString(field_99)
    with pytest.raises(InvalidArgumentError, match=r"sampling\.logits_processors\[0\]\.#99"):
        parse_generate(request, INFO)
    request.sampling.ClearField("logits_processors")
    request.guided.choice.MergeFromString(field_99)
    with pytest.raises(InvalidArgumentError, match=r"guided\.choice\.#99"):
        parse_generate(request, INFO)


def test_include_stop_needs_a_stop() -> None:
    with pytest.raises(InvalidArgumentError, match="include_stop"):
        parse_generate(v1.make_request("a", include_stop=True, ignore_eos=True), INFO)
    for more in ({"stop_strings": ["x"]}, {"stop_token_ids": [3]}, {"stop_regex": ["x"]}):
        request = v1.make_request("a", include_stop=True, ignore_eos=True, **more)
        assert parse_generate(request, INFO).params.include_stop


def test_text_and_ids_are_checked_against_the_model() -> None:
    assert parse_text("text", "a" * 640, INFO) == "a" * 640
    with pytest.raises(InvalidArgumentError, match=r"text='641 characters': at most 640"):
        parse_text("text", "a" * 641, INFO)
    assert parse_token_ids("token_ids", [0, 99], INFO) == [0, 99]
    assert parse_token_ids("token_ids", [], INFO) == []
    with pytest.raises(InvalidArgumentError, match=r"token_ids=100: must be in \[0, 100\)"):
        parse_token_ids("token_ids", [5, 100, 7], INFO)


def test_a_delta_between_first_and_last_is_small() -> None:
    message = delta_message(OutputDelta(0, "a", (5,)))
    assert message == v1.GenerateResponse(text="a", token_ids=[5])
    assert len(message.SerializeToString()) <= 6


def test_the_last_delta_carries_everything() -> None:
    delta = OutputDelta(
        1,
        "a",
        (5,),
        OutputFinish(FinishReason.STOP, stop_string="x"),
        Usage(num_prompt_tokens=3, num_cached_tokens=2, num_generated_tokens=9),
        Timings(queued=0.5, first_token=1.5, total=2.0),
    )
    assert delta_message(delta) == v1.GenerateResponse(
        output_index=1,
        text="a",
        token_ids=[5],
        finish=v1.Finish(reason=v1.FinishReason.FINISH_REASON_STOP, stop_string="x"),
        usage=v1.Usage(prompt_tokens=3, cached_tokens=2, generated_tokens=9),
        timings=v1.Timings(queued_seconds=0.5, first_token_seconds=1.5, total_seconds=2.0),
    )


def test_times_that_never_came_are_not_sent_as_zero() -> None:
    message = delta_message(OutputDelta(0, timings=Timings(queued=None, first_token=None, total=2.0)))
    assert not message.timings.HasField("queued_seconds")
    assert not message.timings.HasField("first_token_seconds")


def test_log_probabilities_travel_with_the_tokens() -> None:
    scored = TokenLogprob(5, -0.5, "a", (TokenLogprob(6, -0.25, "b"), TokenLogprob(5, -0.5, "a")))
    message = delta_message(OutputDelta(0, "a", logprobs=(scored,), prompt_logprobs=(scored, scored)))
    top = [
        v1.TokenLogprob(token_id=6, logprob=-0.25, text="b"),
        v1.TokenLogprob(token_id=5, logprob=-0.5, text="a"),
    ]
    wanted = v1.TokenLogprob(token_id=5, logprob=-0.5, text="a", top=top)
    assert list(message.logprobs) == [wanted]
    assert list(message.prompt_logprobs) == [wanted, wanted]


def test_how_an_output_ended_in_numbers() -> None:
    finish = finish_message(OutputFinish(FinishReason.LENGTH, cumulative_logprob=0.0, score=-1.5))
    assert finish.HasField("cumulative_logprob")
    assert finish.beam_score == -1.5
    assert not finish_message(OutputFinish(FinishReason.TIME)).HasField("cumulative_logprob")
    assert finish_message(OutputFinish(FinishReason.TIME)).reason == v1.FinishReason.FINISH_REASON_TIME


def test_what_matched_is_told_apart() -> None:
    regex = finish_message(OutputFinish(FinishReason.STOP, stop_regex="a+"))
    assert (regex.WhichOneof("matched"), regex.stop_regex) == ("stop_regex", "a+")
    criterion = finish_message(OutputFinish(FinishReason.STOP, criterion="twice"))
    assert (criterion.WhichOneof("matched"), criterion.stopping_criterion) == ("stopping_criterion", "twice")
    by_id = finish_message(OutputFinish(FinishReason.STOP, stop_token_id=0))
    assert by_id.WhichOneof("matched") == "stop_token_id"
    assert finish_message(OutputFinish(FinishReason.LENGTH)).WhichOneof("matched") is None


@pytest.mark.parametrize("reason", [FinishReason.DEADLINE, FinishReason.ERROR])
def test_failures_have_no_message(reason: FinishReason) -> None:
    with pytest.raises(KeyError):
        finish_message(OutputFinish(reason))


async def test_once_gathers_interleaved_outputs_in_order() -> None:
    async def deltas() -> AsyncIterator[OutputDelta]:
        yield OutputDelta(0, prompt_logprobs=(TokenLogprob(8, -1.0, ""),))
        yield OutputDelta(0, prompt_logprobs=(TokenLogprob(9, -1.0, ""),))
        yield OutputDelta(1, "b", (1,), logprobs=(TokenLogprob(1, -1.0, ""),))
        yield OutputDelta(0, "a", (2,))
        yield OutputDelta(1, "c", (3,), OutputFinish(FinishReason.LENGTH))
        yield OutputDelta(
            0, "d", (4,), OutputFinish(FinishReason.ABORT), Usage(1, 0, 4), Timings(None, None, 1.0)
        )

    message = await once_message(deltas())
    assert [output.text for output in message.outputs] == ["ad", "bc"]
    assert [list(output.token_ids) for output in message.outputs] == [[2, 4], [1, 3]]
    assert [v1.FinishReason.Name(output.finish.reason) for output in message.outputs] == [
        "FINISH_REASON_ABORT",
        "FINISH_REASON_LENGTH",
    ]
    assert [scored.token_id for scored in message.prompt_logprobs] == [8, 9]
    assert [scored.token_id for scored in message.outputs[1].logprobs] == [1]
    assert message.usage.generated_tokens == 4
    assert message.timings.total_seconds == 1.0


def test_load_tells_the_share_of_blocks_in_use() -> None:
    message = load_message(EngineLoad(num_running=1, num_waiting=2, num_blocks=8, num_free_blocks=6))
    assert message.kv_usage == 0.25


def test_model_info_tells_the_limits() -> None:
    message = model_message(INFO, "1.2.3")
    assert (message.name, message.vocab_size, message.server_version) == ("tiny", 100, "1.2.3")
    assert list(message.eos_token_ids) == [2]
    assert message.limits.max_outputs == MAX_OUTPUTS
    assert message.limits.max_stop_string_chars == MAX_STOP_STRING_LENGTH
    assert message.limits.max_num_queued == 4
    unset = [field.name for field in v1.Limits.DESCRIPTOR.fields if not getattr(message.limits, field.name)]
    assert unset == []


def test_model_info_tells_what_requests_may_name() -> None:
    info = replace(INFO, stopping_criteria=(NamedInfo("twice", "Says it twice.", "{}"),))
    message = model_message(info, "1.2.3")
    assert list(message.logits_processors) == []
    (named,) = message.stopping_criteria
    assert (named.name, named.description, named.parameters_schema) == ("twice", "Says it twice.", "{}")
