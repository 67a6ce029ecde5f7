"""The command line: options, exit codes, what is imported when, and the client command against a server."""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from engine.config import DEFAULT_LIMITS, CacheOptions, EngineOptions
from engine.demo import MODEL_DIR
from engine.serving import cli
from engine.serving.commands import serve_options
from engine.serving.options import ServerOptions
from inflight import v1
from tests.support.grpc_server import Served

TORCH, TENSORRT = DEFAULT_LIMITS["torch"], DEFAULT_LIMITS["tensorrt"]
TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def parse(*argv: str) -> argparse.Namespace:
    return cli.build_parser().parse_args(argv)


def test_serve_without_options_takes_the_defaults_of_the_engine() -> None:
    args = parse("serve", "--no-plan-cache")
    assert serve_options.engine_options(args) == EngineOptions(MODEL_DIR)
    assert serve_options.server_options(args) == ServerOptions()


def test_every_option_of_serve_arrives() -> None:
    args = parse(
        *("serve", "some/model", "--host", "::1", "--port", "0", "--stream-interval", "0.5"),
        *("--max-messages-per-second", "7"),
        *("--stall-seconds", "3", "--max-message-bytes", "1M", "--device", "cpu", "--dtype", "bfloat16"),
        *("--max-model-len", "99", "--max-num-seqs", "3", "--max-num-batched-tokens", "7"),
        *("--max-num-queued", "5", "--policy", "priority", "--block-size", "32"),
        *("--kv-cache-bytes", "1.5G", "--kv-cache-fraction", "0.25", "--no-prefix-caching"),
        *("--backend", "torch", "--plan-dir", "some/plans", "--plugin", "some.module", "--plugin", "file.py"),
    )
    assert serve_options.engine_options(args) == EngineOptions(
        model_dir=Path("some/model"),
        device="cpu",
        dtype="bfloat16",
        max_model_len=99,
        max_num_seqs=3,
        max_num_batched_tokens=7,
        max_num_queued=5,
        policy="priority",
        backend="torch",
        plan_dir=Path("some/plans"),
        plugins=("some.module", "file.py"),
        cache=CacheOptions(32, num_bytes=3 << 29, fraction=0.25, enable_prefix_caching=False),
    )
    assert serve_options.server_options(args) == ServerOptions("::1", 0, 1 << 20, 0.5, 7.0, 3.0)


@pytest.mark.parametrize(
    ("options", "backend", "limits"),
    [
        ([], "torch", (TORCH.max_num_seqs, TORCH.max_num_batched_tokens)),
        ([], "tensorrt", (TENSORRT.max_num_seqs, TENSORRT.max_num_batched_tokens)),
        (["--max-num-seqs", "3"], "tensorrt", (3, TENSORRT.max_num_batched_tokens)),
        (["--max-num-batched-tokens", "100"], "tensorrt", (100, 100)),
        (["--max-num-seqs", "600"], "torch", (600, 600)),
        (["--max-num-seqs", "5", "--max-num-batched-tokens", "7"], "tensorrt", (5, 7)),
    ],
)
def test_the_backend_decides_limits_that_were_not_given(
    options: list[str], backend: str, limits: tuple[int, int]
) -> None:
    found = serve_options.engine_options(parse("serve", *options), backend)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == limits
    assert found.backend == backend


def test_plans_are_kept_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert parse("serve").plan_dir == Path("/home/ada/.cache/inflight/plans")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert parse("serve").plan_dir == Path("/home/ada/.cache/inflight/plans")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert parse("serve").plan_dir == Path("/var/cache/ada/inflight/plans")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("512M", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("10kb", 10 << 10),
        ("2t", 2 << 40),
        ("0", 0),
    ],
)
def test_sizes_are_powers_of_1024(text: str, num_bytes: int) -> None:
    assert parse("serve", "--kv-cache-bytes", text).kv_cache_bytes == num_bytes


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "G", "1P", "1,5G"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("serve", f"--kv-cache-bytes={text}")
    assert caught.value.code == 2
    assert "is not a size such as 4096, 512M or 1.5G" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*command.split(), "--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "None)" not in shown
    assert "False)" not in shown
    if command == "serve":
        tokens = f"{TORCH.max_num_batched_tokens}; with TensorRT {TENSORRT.max_num_batched_tokens}"
        for default in ("127.0.0.1", "50051", "16 MiB", tokens, "0.9", "the demo model"):
            assert f"(default: {default})" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "port 70000: must be in [0, 65535]"),
        (["--max-num-seqs", "0"], "max_num_seqs 0: must be at least 1"),
        (["--max-num-batched-tokens", "0"], "max_num_batched_tokens 0: must be at least max_num_seqs=1"),
        (
            ["--max-num-seqs", "9", "--max-num-batched-tokens", "8"],
            "max_num_batched_tokens 8: must be at least max_num_seqs=9",
        ),
        (["--block-size", "0"], "block size 0: must be in [1, 1024] tokens"),
        (["--kv-cache-fraction", "2"], "KV cache fraction 2.0: must be in (0, 1]"),
        (["--stream-interval", "nan"], "stream_interval nan: must be in [0, 10] seconds"),
        (["--max-messages-per-second", "0"], "max_messages_per_second 0.0: must be above 0"),
        (["--stall-seconds", "0"], "stall_seconds 0.0: must be above 0"),
        (["--grace-seconds", "-1"], "grace_seconds -1.0: must be at least 0"),
        (["no/such/model"], "no/such/model"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("inflight: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_info_tells_sizes_from_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
    assert cli.main(["info", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "architecture LlamaForCausalLM (supported)" in shown
    # Embedding; for each layer q and o, k and v, MLP and norms; the last norm.
    parameters = 1000 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert f"parameters {parameters:,}" in shown
    assert "KV cache 256 B a token 128 KiB for the longest sequence" in shown
    assert "longest sequence 512 tokens" in shown


def test_info_says_what_is_supported_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA | {"architectures": ["MambaForCausalLM"]}))
    assert cli.main(["info", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "MambaForCausalLM" in shown
    assert "LlamaForCausalLM" in shown


@pytest.mark.parametrize(
    ("argv", "unwanted"),
    [
        (["--help"], {"torch", "transformers", "grpc", "numpy"}),
        (["serve", "--help"], {"torch", "transformers", "grpc", "numpy"}),
        (["generate", "x", "--address", "127.0.0.1:1", "--timeout", "0.01"], {"torch", "transformers"}),
        (["info", "no/such/model"], {"torch", "transformers", "grpc"}),
    ],
    ids=["help", "help of serve", "generate", "info"],
)
def test_a_command_imports_only_what_it_needs(argv: list[str], unwanted: set[str]) -> None:
    code = (
        "import sys\n"
        "from engine.serving.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    paths = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=paths)
    assert "engine.serving.cli" in done.stderr.split(), done.stderr
    assert unwanted.isdisjoint(done.stderr.split())


def test_generate_without_a_server_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "x", "--address", "127.0.0.1:1", "--timeout", "5"]) == 1
    assert capsys.readouterr().err.startswith("inflight: UNAVAILABLE: ")


def test_generate_refuses_what_the_message_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "x", "--top-k", "-1"]) == 2
    assert "-1" in capsys.readouterr().err


async def start(*argv: str) -> asyncio.subprocess.Process:
    """The command in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine.serving.cli", *argv),
        env={"PYTHONPATH": ":".join(sys.path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def inflight(*argv: str) -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr of the command."""
    process = await start(*argv)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_generate_streams_the_text_to_stdout_and_the_summary_to_stderr(served: Served) -> None:
    options = ("--address", served.address, "--max-new-tokens", "5", "--stop", "x", "--stop", "ef")
    code, out, err = await inflight("generate", "a", *options)
    assert (code, out) == (0, "bcd\n")
    assert err.startswith("1 prompt tokens (0 cached), ")


async def test_generate_shows_several_outputs_one_after_the_other(served: Served) -> None:
    options = ("--address", served.address, "-q", "-n", "2", "--temperature", "1", "--max-new-tokens", "3")
    code, out, err = await inflight("generate", "a", *options)
    assert (code, err) == (0, "")
    assert out == "--- output 0 (length)\nbcd\n--- output 1 (length)\nbcd\n"


async def test_generate_prints_events_as_json(served: Served) -> None:
    code, out, _ = await inflight(
        "generate", "a", "--address", served.address, "--json", "--max-new-tokens", "3"
    )
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert "".join(event.get("text", "") for event in events) == "bcd"
    assert events[-1]["finish"] == {"reason": "FINISH_REASON_LENGTH"}
    assert events[-1]["usage"] == {"prompt_tokens": 1, "generated_tokens": 3}


@pytest.mark.parametrize(
    ("options", "finish"),
    [
        (("--stop-regex", "[e-g]+"), {"reason": "FINISH_REASON_STOP", "stop_regex": "[e-g]+"}),
        (("--max-time-seconds", "1e-9"), {"reason": "FINISH_REASON_TIME"}),
        (
            ("--bad-word", "zz", "--no-repeat-ngram-size", "2", "--max-new-tokens", "3"),
            {"reason": "FINISH_REASON_LENGTH"},
        ),
    ],
)
async def test_generate_passes_on_what_is_asked_for(
    served: Served, options: tuple[str, ...], finish: dict[str, str]
) -> None:
    code, out, err = await inflight("generate", "a", "--address", served.address, "--json", *options)
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["finish"] == finish


@pytest.mark.parametrize(
    ("options", "field"),
    [(("--choice", "a", "--choice", "b"), "guided="), (("--beam-width", "99"), "sampling.beam.width=99")],
)
async def test_generate_asks_for_guides_and_beams(
    served: Served, options: tuple[str, ...], field: str
) -> None:
    """As told by what this server says about them."""
    code, _, err = await inflight("generate", "a", "--address", served.address, *options)
    assert code == 1
    assert err.startswith(f"inflight: INVALID_ARGUMENT: {field}")


async def test_generate_tells_what_the_server_refused(served: Served) -> None:
    code, out, err = await inflight("generate", "a", "--address", served.address, "--top-p", "0.5")
    assert (code, out) == (1, "")
    assert err.startswith("inflight: INVALID_ARGUMENT: sampling.top_p=0.5: ")
    assert err.count("\n") == 1


def fetch(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        text: str = response.read().decode()
        return text


async def test_serve_announces_itself_answers_and_ends_with_0() -> None:
    options = ("--port", "0", "--metrics-port", "0", "--max-model-len", "64", "--kv-cache-bytes", "4M")
    process = await start("serve", "--device", "cpu", *options)
    assert process.stdout is not None
    assert process.stderr is not None
    announced = ""
    while "try: grpcurl" not in announced:
        line = (await process.stdout.readline()).decode()
        assert line, (await process.stderr.read()).decode()
        announced += line
    rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in announced.splitlines()[:-1])
    assert rows["model"] == "demo (LlamaForCausalLM, float32 on cpu)"
    assert rows["backend"] == "torch"
    assert re.fullmatch(r"weights [\d.]+ s, in all [\d.]+ s", rows["start"])
    assert rows["longest sequence"] == "64 tokens"
    assert rows["KV cache"].startswith("4 MiB (")
    async with v1.Client(rows["gRPC"]) as client:
        answer = await client.generate_once("Count up from 7:", max_new_tokens=6)
        assert answer.outputs[0].text.startswith(" 7 8 9")
    metrics = await asyncio.to_thread(fetch, rows["metrics"])
    assert "inflight_generation_tokens_total 6.0" in metrics
    (info,) = (line for line in metrics.splitlines() if line.startswith("inflight_engine_info{"))
    for label in ('backend="torch"', 'device="cpu"', 'dtype="float32"', 'model_name="demo"'):
        assert label in info
    assert 'inflight_memory_bytes{use="kv_cache"} 4.194304e+06' in metrics
    assert "inflight_rejected_kernels 0.0" in metrics
    assert 'inflight_startup_seconds{phase="weights"}' in metrics
    process.terminate()
    assert await process.wait() == 0
    log = (await process.stderr.read()).decode()
    assert re.search(r"INFO weights: [\d.]+ MiB in [\d.]+ s", log)
    assert "length; tokens: " in log
    assert "Traceback" not in log


def test_no_collection_looks_at_what_a_start_has_made() -> None:
    code = (
        "import gc, torch\n"
        "from engine.serving.commands.serve import _settle_garbage\n"
        "before = len(gc.get_objects())\n"
        "_settle_garbage()\n"
        "assert gc.get_freeze_count() > 0.9 * before > 10_000, gc.get_freeze_count()\n"
        "assert len(gc.get_objects()) < 0.01 * before, len(gc.get_objects())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
