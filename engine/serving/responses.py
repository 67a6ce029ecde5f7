"""The engine's own types to messages of generation.proto."""

from collections.abc import AsyncIterable

from engine.sampling.guided.spec import MAX_CHOICES, MAX_GRAMMAR_CHARS
from engine.sampling.params import (
    MAX_BAD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BEAM_WIDTH,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_NAMED,
    MAX_NGRAM_SIZE,
    MAX_OUTPUTS,
    MAX_STOP_STRING_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from engine.serving.types import (
    MAX_PROMPT_LOGPROBS,
    MAX_REQUEST_ID_LENGTH,
    EngineLoad,
    ModelInfo,
    NamedInfo,
    OutputDelta,
    OutputFinish,
    Timings,
    TokenLogprob,
    Usage,
)
from engine.text.stop_regex import MAX_HELD
from inflight import v1 as pb
from scheduler.request import FinishReason

_FINISH_REASONS = {
    FinishReason.STOP: pb.FinishReason.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FinishReason.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FinishReason.FINISH_REASON_ABORT,
    FinishReason.TIME: pb.FinishReason.FINISH_REASON_TIME,
}


def delta_message(delta: OutputDelta) -> pb.GenerateResponse:
    message = pb.GenerateResponse(output_index=delta.output_index, text=delta.text, token_ids=delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(map(logprob_message, delta.logprobs))
    if delta.prompt_logprobs:
        message.prompt_logprobs.extend(map(logprob_message, delta.prompt_logprobs))
    if delta.finish is not None:
        message.finish.CopyFrom(finish_message(delta.finish))
    if delta.usage is not None:
        message.usage.CopyFrom(usage_message(delta.usage))
    if delta.timings is not None:
        message.timings.CopyFrom(timings_message(delta.timings))
    return message


async def once_message(deltas: AsyncIterable[OutputDelta]) -> pb.GenerateOnceResponse:
    """All deltas of a stream in one message."""
    outputs: dict[int, list[OutputDelta]] = {}
    message = pb.GenerateOnceResponse()
    async for delta in deltas:
        outputs.setdefault(delta.output_index, []).append(delta)
        message.prompt_logprobs.extend(map(logprob_message, delta.prompt_logprobs))
        if delta.usage is not None:
            message.usage.CopyFrom(usage_message(delta.usage))
        if delta.timings is not None:
            message.timings.CopyFrom(timings_message(delta.timings))
    message.outputs.extend(_output_message(outputs[index]) for index in sorted(outputs))
    return message


def _output_message(deltas: list[OutputDelta]) -> pb.GeneratedOutput:
    message = pb.GeneratedOutput(text="".join(delta.text for delta in deltas))
    for delta in deltas:
        message.token_ids.extend(delta.token_ids)
        message.logprobs.extend(map(logprob_message, delta.logprobs))
    if deltas[-1].finish is not None:
        message.finish.CopyFrom(finish_message(deltas[-1].finish))
    return message


def finish_message(finish: OutputFinish) -> pb.Finish:
    """DEADLINE and ERROR end a call with a status, never with a message."""
    message = pb.Finish(
        reason=_FINISH_REASONS[finish.reason],
        cumulative_logprob=finish.cumulative_logprob,
        beam_score=finish.score,
    )
    if finish.stop_string is not None:
        message.stop_string = finish.stop_string
    elif finish.stop_token_id is not None:
        message.stop_token_id = finish.stop_token_id
    elif finish.stop_regex is not None:
        message.stop_regex = finish.stop_regex
    elif finish.criterion is not None:
        message.stopping_criterion = finish.criterion
    return message


def logprob_message(scored: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=scored.token_id,
        logprob=scored.logprob,
        text=scored.text,
        top=[pb.TokenLogprob(token_id=each[0], logprob=each[1], text=each[2]) for each in scored.top],
    )


def usage_message(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        cached_tokens=usage.num_cached_tokens,
        generated_tokens=usage.num_generated_tokens,
    )


def timings_message(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queued_seconds=timings.queued,
        first_token_seconds=timings.first_token,
        total_seconds=timings.total,
    )


def load_message(load: EngineLoad) -> pb.GetLoadResponse:
    return pb.GetLoadResponse(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_blocks=load.num_blocks,
        num_free_blocks=load.num_free_blocks,
        kv_usage=load.kv_usage,
    )


def model_message(info: ModelInfo, server_version: str) -> pb.GetModelInfoResponse:
    return pb.GetModelInfoResponse(
        name=info.name,
        architecture=info.architecture,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        dtype=info.dtype,
        tokenizer_sha256=info.tokenizer_sha256,
        eos_token_ids=info.eos_token_ids,
        limits=pb.Limits(
            max_outputs=MAX_OUTPUTS,
            max_stop_strings=MAX_STOP_STRINGS,
            max_stop_string_chars=MAX_STOP_STRING_LENGTH,
            max_stop_token_ids=MAX_STOP_TOKEN_IDS,
            max_prompt_chars=info.max_prompt_chars,
            max_request_id_chars=MAX_REQUEST_ID_LENGTH,
            max_num_seqs=info.max_num_seqs,
            max_num_queued=info.max_num_queued,
            block_size=info.block_size,
            policy=info.policy,
            max_logit_biases=MAX_LOGIT_BIASES,
            max_bad_words=MAX_BAD_WORDS,
            max_bad_word_tokens=MAX_BAD_TOKENS,
            max_logprobs=MAX_LOGPROBS,
            max_prompt_logprobs=MAX_PROMPT_LOGPROBS,
            max_beam_width=MAX_BEAM_WIDTH,
            max_named=MAX_NAMED,
            max_stop_regex=MAX_STOP_STRINGS,
            max_stop_regex_chars=MAX_STOP_STRING_LENGTH,
            max_stop_regex_held_chars=MAX_HELD,
            max_guided_chars=MAX_GRAMMAR_CHARS,
            max_choices=MAX_CHOICES,
            max_ngram_size=MAX_NGRAM_SIZE,
        ),
        server_version=server_version,
        logits_processors=map(_named_message, info.logits_processors),
        stopping_criteria=map(_named_message, info.stopping_criteria),
    )


def _named_message(info: NamedInfo) -> pb.NamedInfo:
    return pb.NamedInfo(name=info.name, description=info.description, parameters_schema=info.schema_json)
