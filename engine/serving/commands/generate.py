"""Ask a running server to continue a prompt, and stream what it says to stdout.

The text goes to stdout, everything else to stderr. Options that are not given take the server's defaults.
"""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, Any

from engine.serving.commands.environment import ADDRESS_VARIABLE, server_address

if TYPE_CHECKING:
    from inflight import v1 as pb

_NOT_OPTIONS = ("prompt", "address", "timeout", "json", "quiet", "run", "beam_width")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help='what to continue; "-" reads it from stdin')
    parser.add_argument(
        "--address", default=server_address(), help=f"the server's; {ADDRESS_VARIABLE} changes the default"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="deadline of the request")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary on stderr")
    _add_sampling(parser.add_argument_group("sampling").add_argument)
    _add_guided(parser.add_argument_group("guided decoding").add_mutually_exclusive_group().add_argument)
    _add_stopping(parser.add_argument_group("stopping").add_argument)
    _add_request(parser.add_argument_group("request").add_argument)


def _add_sampling(add: Any) -> None:
    add("--temperature", **_value(float, "T", "0 is greedy"))
    add("--top-k", **_value(int, "K", "keep the K most likely tokens; 0 keeps all"))
    add("--top-p", **_value(float, "P", "keep the most likely tokens that have probability P together"))
    add("--min-p", **_value(float, "P", "keep tokens at least P times as likely as the most likely one"))
    add("--typical-p", **_value(float, "P", "keep the most typical tokens that have probability P together"))
    add("--seed", **_value(int, "SEED", "the same request with the same seed gets the same text"))
    add("--repetition-penalty", **_value(float, "X", "divide logits of tokens seen before by X; 1 is off"))
    add("--presence-penalty", **_value(float, "X", "subtract X from logits of tokens generated before"))
    add("--frequency-penalty", **_value(float, "X", "the same for each time that they were"))
    add("--no-repeat-ngram-size", **_value(int, "N", "generate no N tokens twice"))
    bad_word = _value(str, "TEXT", "do not generate TEXT; may be repeated")
    add("--bad-word", dest="bad_words", **bad_word, action="append")
    add("--beam-width", **_value(int, "N", "search with N beams instead of sampling"))


def _add_guided(add: Any) -> None:
    add("--json-schema", **_value(str, "SCHEMA", "the output is JSON that this schema describes"))
    add("--regex", **_value(str, "REGEX", "the output matches this regular expression"))
    add("--grammar", **_value(str, "GRAMMAR", "the output matches this grammar, in the notation of Lark"))
    choice = _value(str, "TEXT", "the output is TEXT, or another choice; may be repeated")
    add("--choice", **choice, action="append")


def _add_stopping(add: Any) -> None:
    add("--max-new-tokens", **_value(int, "N", "generate at most N tokens"))
    add("--min-new-tokens", **_value(int, "N", "do not stop before N tokens"))
    add(
        "--stop", dest="stop_strings", **_value(str, "TEXT", "stop at TEXT; may be repeated"), action="append"
    )
    stop_regex = _value(str, "REGEX", "stop where REGEX matches; may be repeated")
    add("--stop-regex", **stop_regex, action="append")
    add("--max-time-seconds", **_value(float, "S", "stop S seconds after the request's arrival"))
    stop_id = _value(int, "ID", "stop at this token; may be repeated")
    add("--stop-token-id", dest="stop_token_ids", **stop_id, action="append")
    add("--ignore-eos", **_switch("go on after the model's end-of-sequence tokens"))
    add("--include-stop", **_switch("the stop text or token is part of the output"))


def _add_request(add: Any) -> None:
    add("-n", **_value(int, "N", "generate N outputs; they are shown when all have ended"))
    add("--best-of", **_value(int, "N", "generate N outputs, and show the most likely ones"))
    add("--logprobs", **_value(int, "K", "log-probabilities, and the K most likely tokens; see --json"))
    add("--echo", **_switch("show the prompt first"))
    add("--priority", **_value(int, "N", "higher runs sooner, where the server's policy is priority"))
    add("--request-id", **_value(str, "ID", "name in Abort and in the server's log"))


def _value(kind: type, metavar: str, text: str) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, "help": text, "default": argparse.SUPPRESS}


def _switch(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text, "default": argparse.SUPPRESS}


def run(args: argparse.Namespace) -> int:
    import grpc.aio

    options = {name: value for name, value in vars(args).items() if name not in _NOT_OPTIONS}
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    try:
        asyncio.run(_generate(args, prompt, options))
    except grpc.aio.AioRpcError as error:
        print(f"inflight: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except (TypeError, ValueError) as error:
        print(f"inflight: {error}", file=sys.stderr)
        return 2
    return 0


async def _generate(args: argparse.Namespace, prompt: str, options: dict[str, Any]) -> None:
    from inflight import v1 as pb

    if "beam_width" in args:
        options["beam"] = pb.Beam(width=args.beam_width)
    show = _show_json if args.json else _show_text
    async with pb.Client(args.address) as client:
        if options.get("n", 1) > 1 and not args.json:
            answer = await client.generate_once(prompt, timeout=args.timeout, **options)
            _show_outputs(answer)
            _show_summary(args, answer.usage, answer.timings)
            return
        async for event in client.generate(prompt, timeout=args.timeout, **options):
            show(event)
            if event.HasField("usage"):
                _show_summary(args, event.usage, event.timings)


def _show_text(event: "pb.GenerateResponse") -> None:
    print(event.text, end="\n" if event.HasField("finish") else "", flush=True)


def _show_json(event: "pb.GenerateResponse") -> None:
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(event, indent=None, preserving_proto_field_name=True), flush=True)


def _show_outputs(answer: "pb.GenerateOnceResponse") -> None:
    from inflight import v1 as pb

    for index, output in enumerate(answer.outputs):
        reason = pb.FinishReason.Name(output.finish.reason).removeprefix("FINISH_REASON_").lower()
        print(f"--- output {index} ({reason})\n{output.text}")


def _show_summary(args: argparse.Namespace, usage: "pb.Usage", timings: "pb.Timings") -> None:
    if not args.quiet and not args.json:
        prompt = f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)"
        seconds = f"first after {timings.first_token_seconds:.3f} s, all after {timings.total_seconds:.3f} s"
        print(f"{prompt}, {usage.generated_tokens} generated, {seconds}", file=sys.stderr)
