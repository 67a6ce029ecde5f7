"""A server of OpenAI's completions over HTTP: POST /v1/completions with stream, as vLLM has it."""

import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from typing import Any, Self

from benchmarks.loadtest.errors import TargetError
from benchmarks.loadtest.http_stream import HttpPool, Response
from benchmarks.loadtest.targets import Delta, End, RequestFailedError, ServedModel, TargetSpec, WireRequest

_BUSY = (429, 503)


class OpenAiTarget:
    """Requests beside each other take connections beside each other."""

    sends_deadlines = False

    def __init__(self, spec: TargetSpec) -> None:
        self._spec = spec
        self._pool = HttpPool(spec.host, spec.port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    async def stream(self, request: WireRequest) -> AsyncGenerator[Delta, None]:
        body = json.dumps(make_body(self._spec, request)).encode()
        try:
            response, lease = await self._pool.post("/v1/completions", body)
        except (OSError, EOFError) as error:
            raise RequestFailedError("failed", f"{type(error).__name__}: {error}") from error
        try:
            if response.status != 200:
                raise await _refused(response)
            events = _Events(isinstance(request.prompt, str))
            async for line in response.lines:
                delta = events.read(line)
                if delta is not None:
                    yield delta
            yield events.end()
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise RequestFailedError("failed", f"{type(error).__name__}: {error}") from error
        finally:
            lease.close()


def make_body(spec: TargetSpec, request: WireRequest) -> dict[str, Any]:
    """spec.body comes last: it adds and replaces."""
    wants_ids = request.wants_answer and not isinstance(request.prompt, str)
    return {
        "model": spec.model,
        "prompt": request.prompt,
        "max_tokens": request.num_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,  # theirs is 1, ours 0
        **({"ignore_eos": True} if request.ignore_eos else {}),
        **({"return_token_ids": True} if wants_ids else {}),
        **dict(request.sampling),
        **spec.body,
    }


class _Events:
    """The lines of one stream. The end is told last, once its usage is known.

    A message has as many tokens as its ids, else as its usage grows by, else one.
    """

    def __init__(self, is_text: bool) -> None:
        self._is_text = is_text
        self._reason = ""
        self._usage: dict[str, Any] = {}

    def read(self, line: bytes) -> Delta | None:
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            return None
        event = json.loads(line[5:])
        if "error" in event:
            raise RequestFailedError("failed", str(event["error"])[:200])
        seen = self._usage.get("completion_tokens", 0)
        self._usage = event.get("usage") or self._usage
        if not event["choices"]:
            return None
        choice = event["choices"][0]
        self._reason = choice.get("finish_reason") or self._reason
        ids = choice.get("token_ids")
        grown = self._usage.get("completion_tokens", 0) - seen if event.get("usage") else None
        num_tokens = (
            len(ids) if ids is not None else grown if grown is not None else int(bool(choice["text"]))
        )
        return Delta(num_tokens, choice["text"] if self._is_text else tuple(ids or ()))

    def end(self) -> Delta:
        if not self._reason:
            raise RequestFailedError("failed", "the stream ended without a finish_reason")
        details = self._usage.get("prompt_tokens_details") or {}
        return Delta(
            0,
            "" if self._is_text else (),
            End(
                self._reason,
                self._usage.get("prompt_tokens"),
                details.get("cached_tokens"),
                self._usage.get("completion_tokens"),
            ),
        )


async def _refused(response: Response) -> RequestFailedError:
    text = b"\n".join([line async for line in response.lines]).decode(errors="replace")
    message = f"HTTP {response.status}: {text[:200]}"
    return RequestFailedError("busy" if response.status in _BUSY else "failed", message)


def ask_openai(spec: TargetSpec, timeout: float) -> ServedModel:
    """GET /v1/models. Blocks. timeout: seconds. Raises TargetError."""
    try:
        with urllib.request.urlopen(f"http://{spec.host}:{spec.port}/v1/models", timeout=timeout) as answer:
            models = json.load(answer)["data"]
        model = next(model for model in models if spec.model in ("", model["id"]))
    except StopIteration:
        raise TargetError(f"--model {spec.model}: the server has no such model") from None
    except (OSError, ValueError, KeyError) as error:
        raise TargetError(f"--target {spec.url}: {error}") from error
    return ServedModel(model["id"], 0, int(model.get("max_model_len") or 0))
