"""The guide's files, command line, client and answers are what it says."""

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import engine.sampling.custom
from engine.sampling.custom import Kind, build_registry
from engine.serving import cli
from engine.serving.build import build_engine
from engine.serving.commands import serve_options
from engine.serving.grpc_server import GrpcServer
from engine.serving.options import ServerOptions

GUIDE = (Path(engine.sampling.custom.__file__).parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PROJECT = Path(__file__).parents[4]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's files, where we are."""
    for text in blocks("python"):
        name = text.splitlines()[0].removeprefix("# ")
        assert name.endswith(".py")
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def address(written: Path) -> AsyncIterator[str]:
    """A server of the demo model, started as the guide does."""
    (command,) = blocks("bash")
    program, *argv = shlex.split(command)
    assert program == "inflight"
    args = cli.build_parser().parse_args([*argv, "--device", "cpu"])
    built = build_engine(serve_options.engine_options(args, "torch"))
    async with built.engine:
        server = GrpcServer(built.engine, ServerOptions(port=0))
        try:
            yield await server.start()
        finally:
            await server.stop(grace=1.0)


async def test_the_client_prints_what_the_guide_says(address: str, written: Path) -> None:
    client = written / "client.py"
    client.write_text(client.read_text().replace("127.0.0.1:50051", address))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(client),
        env={"PYTHONPATH": str(PROJECT / "proto")},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert [printed.decode()] == blocks("text")
    assert process.returncode == 0


def test_what_is_built_in_is_in_its_table() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)", GUIDE, re.MULTILINE)
    registry = build_registry()
    names = {"processor": Kind.PROCESSOR, "criterion": Kind.CRITERION}
    assert {(name, names[kind]) for name, kind, _ in listed} == {
        (entry.name, kind) for kind in Kind for entry in registry.entries(kind)
    }
    for name, kind, parameters in listed:
        entry = registry.find(names[kind], name)
        assert entry is not None
        assert set(re.findall(r"`(\w+)`", parameters)) == set(entry.parameters.__annotations__)
