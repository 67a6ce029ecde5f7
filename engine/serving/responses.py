"""The engine's own types to messages of generation.proto."""

from collections.abc import AsyncIterable

from engine.sampling.params import MAX_OUTPUTS, MAX_STOP_STRING_LENGTH, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from engine.serving.types import (
    MAX_REQUEST_ID_LENGTH,
    EngineLoad,
    ModelInfo,
    OutputDelta,
    OutputFinish,
    Timings,
    Usage,
)
from inflight import v1 as pb
from scheduler.request import FinishReason

_FINISH_REASONS = {
    FinishReason.STOP: pb.FinishReason.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FinishReason.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FinishReason.FINISH_REASON_ABORT,
}


def delta_message(delta: OutputDelta) -> pb.GenerateResponse:
    message = pb.GenerateResponse(output_index=delta.output_index, text=delta.text, token_ids=delta.token_ids)
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
    if deltas[-1].finish is not None:
        message.finish.CopyFrom(finish_message(deltas[-1].finish))
    return message


def finish_message(finish: OutputFinish) -> pb.Finish:
    """DEADLINE and ERROR end a call with a status, never with a message."""
    message = pb.Finish(reason=_FINISH_REASONS[finish.reason])
    if finish.stop_string is not None:
        message.stop_string = finish.stop_string
    elif finish.stop_token_id is not None:
        message.stop_token_id = finish.stop_token_id
    return message


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
        ),
        server_version=server_version,
    )
