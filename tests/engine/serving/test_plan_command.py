"""`inflight plan`: what it builds is what a server on a GPU asks for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import backends
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import BackendUnavailableError
from engine.model.huggingface import load_config
from engine.serving import cli
from engine.serving.commands.plan import find_gpu
from engine.serving.commands.serve_options import engine_options
from engine.tensorrt_backend.build import buckets_of
from engine.tensorrt_backend.candidates import plan_specs
from engine.tensorrt_backend.library import Library, load_library
from engine.tensorrt_backend.plan_cache import PlanCache

SMALL = ("--max-num-seqs", "2", "--max-num-batched-tokens", "4")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be used")


@pytest.fixture
def library() -> Library:
    return load_library("tensorrt_rtx")


def serve_options(*argv: str) -> EngineOptions:
    """As `inflight serve` makes them where the TensorRT backend is chosen."""
    return engine_options(cli.build_parser().parse_args(["serve", str(MODEL_DIR), *argv]), "tensorrt")


@pytest.mark.parametrize("limits", [(), SMALL], ids=["defaults", "small"])
def test_a_server_on_a_gpu_finds_the_plans(
    limits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], library: Library
) -> None:
    assert cli.main(["plan", str(MODEL_DIR), "--plan-dir", str(tmp_path), *limits]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == f"tensorrt_rtx {library.version}, for any GPU, {tmp_path}"
    options = serve_options("--plan-dir", str(tmp_path), *limits)
    config = load_config(MODEL_DIR)
    dtype = getattr(torch, config.dtype)  # what dtype "auto" is on a GPU
    cache = PlanCache(library, options.plan_dir, "NVIDIA H200")
    specs = list(plan_specs(config, dtype, buckets_of(options)))
    assert [line.split()[0] for line in lines] == [spec.segment.name for spec in specs]
    assert all("built in" in line for line in lines)
    assert not any(cache.get(spec).was_built for spec in specs)


def test_what_is_there_is_not_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for how in ("built in", "there already"):
        assert cli.main(["plan", str(MODEL_DIR), "--plan-dir", str(tmp_path), *SMALL]) == 0
        assert all(how in line for line in capsys.readouterr().out.splitlines()[1:])


def test_plans_that_cannot_be_kept_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "plans"
    assert cli.main(["plan", str(MODEL_DIR), "--plan-dir", str(directory), *SMALL]) == 2
    assert f"plan_dir {directory}: plans cannot be kept there" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "has_module", lambda name: name != "triton")
    assert cli.main(["plan", str(MODEL_DIR), "--plan-dir", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "no plans can be built here: triton is not installed. Do: pip install 'triton>=" in shown


@without_gpu
def test_a_library_that_builds_on_a_gpu_only_is_refused_without_one(library: Library) -> None:
    full = replace(library, name="tensorrt", version="10.13.2", is_rtx=False, can_build_without_gpu=False)
    with pytest.raises(BackendUnavailableError, match=r"10\.13\.2 builds plans only for a GPU .*_rtx=="):
        find_gpu(full)
    assert find_gpu(library) is None


def test_what_tensorrt_refuses_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    def fail(*_: object) -> None:
        raise library.failure("building the plan")

    monkeypatch.setattr("engine.tensorrt_backend.plan_cache.build_plan", fail)
    assert cli.main(["plan", str(MODEL_DIR), "--plan-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("inflight: TensorRT failed: building the plan: tensorrt_rtx ")
    assert "--backend torch" in shown
