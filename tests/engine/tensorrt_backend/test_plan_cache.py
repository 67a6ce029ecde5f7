"""Plans on disk: what is read, what is built again and why, and what a disk can do wrong."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.tensorrt_backend.kernel_cache import KernelCache
from engine.tensorrt_backend.library import Library, load_library
from engine.tensorrt_backend.plan_cache import PlanCache, model_digest
from engine.tensorrt_backend.plans import PlanSpec
from engine.tensorrt_backend.segments import SegmentForm, SegmentKind, segment_spec
from tests.support.decoders import model_config

ROOT = Path(__file__).parents[3]
CONFIG = model_config("llama2")


def _spec(*buckets: int, form: SegmentForm = SegmentForm.FUSED) -> PlanSpec:
    return PlanSpec(segment_spec(SegmentKind.LAST, CONFIG, torch.bfloat16, form), buckets)


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt_rtx")


@pytest.fixture
def cache(library: Library, tmp_path: Path) -> PlanCache:
    return PlanCache(library, tmp_path, "NVIDIA H200")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "engine")
    return lambda: [record.getMessage() for record in caplog.records]


def _plan_file(directory: Path) -> Path:
    (path,) = directory.glob("*.plan")
    return path


def test_a_plan_is_built_once(cache: PlanCache, tmp_path: Path, logged: Callable[[], list[str]]) -> None:
    first, second = cache.get(_spec(4)), cache.get(_spec(4))
    assert (first.was_built, second.was_built) == (True, False)
    assert first.content == second.content == _plan_file(tmp_path).read_bytes()
    assert logged() == []
    manifest = json.loads(_plan_file(tmp_path).with_suffix(".json").read_text())
    assert manifest["num_bytes"] == len(first.content)
    assert manifest["key"]["version"] == "1.4.0.76"
    assert manifest["key"]["gpu"] == "portable"
    assert manifest["key"]["buckets"] == [4]
    assert manifest["key"]["hidden_size"] == 64


def test_without_a_directory_nothing_is_kept(library: Library) -> None:
    cache = PlanCache(library, None, None)
    assert cache.get(_spec(4)).was_built
    assert cache.get(_spec(4)).was_built


def test_models_and_forms_have_files_of_their_own(cache: PlanCache, tmp_path: Path) -> None:
    other = PlanSpec(segment_spec(SegmentKind.LAST, model_config("qwen3"), torch.bfloat16), (4,))
    specs = [_spec(4), _spec(4, form=SegmentForm.APART), other]
    assert all(cache.get(spec).was_built for spec in specs)
    assert not any(cache.get(spec).was_built for spec in specs)
    assert len(list(tmp_path.glob("*.plan"))) == 3


def test_servers_with_other_buckets_share_a_directory(
    cache: PlanCache, tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    """None replaces what another has built."""
    specs = [_spec(4), _spec(1, 4), _spec(1, 2)]
    assert all(cache.get(spec).was_built for spec in specs)
    assert not any(cache.get(spec).was_built for spec in specs)
    manifests = [json.loads(path.with_suffix(".json").read_text()) for path in tmp_path.glob("*.plan")]
    assert sorted(manifest["key"]["buckets"] for manifest in manifests) == [[1, 2], [1, 4], [4]]
    assert logged() == []


def test_models_that_differ_in_no_network_share_their_plans() -> None:
    assert model_digest(CONFIG, torch.float16) == model_digest(model_config("llama2"), torch.float16)
    longer = replace(CONFIG, max_model_len=512, windows=(None,) * 8, eos_token_ids=(3,))
    assert model_digest(CONFIG, torch.float16) == model_digest(longer, torch.float16)
    assert model_digest(CONFIG, torch.float16) != model_digest(CONFIG, torch.bfloat16)
    wider = replace(CONFIG, rms_norm_eps=1e-4)
    assert model_digest(CONFIG, torch.float16) != model_digest(wider, torch.float16)


def test_a_plan_of_another_version_is_built_again(
    library: Library, cache: PlanCache, tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    cache.get(_spec(4))
    newer = PlanCache(replace(library, version="1.6.1.120"), tmp_path, None)
    assert newer.get(_spec(4)).was_built
    expected = "plan last-fused-bfloat16 is built again: version was 1.4.0.76, is 1.6.1.120"
    assert logged() == [expected]
    assert not newer.get(_spec(4)).was_built


def test_a_plan_that_is_not_portable_is_for_one_gpu(
    library: Library, tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    full = replace(library, is_rtx=False)
    PlanCache(full, tmp_path, "NVIDIA H200").get(_spec(4))
    assert not PlanCache(full, tmp_path, "NVIDIA H200").get(_spec(4)).was_built
    assert PlanCache(full, tmp_path, "NVIDIA L4").get(_spec(4)).was_built
    assert logged() == ["plan last-fused-bfloat16 is built again: gpu was NVIDIA H200, is NVIDIA L4"]


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (".plan", lambda content: content[:1000], "damaged: 1000 bytes instead of"),
        (".plan", lambda content: b"", "damaged: 0 bytes instead of"),
        (".plan", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "not the bytes that were written"),
        (".json", lambda content: content[:-20], "damaged manifest"),
        (".json", lambda content: b"[]", "damaged manifest"),
        (".json", lambda content: b"\xff\xfe", "damaged manifest"),
        (".json", lambda content: content.replace(b'"sha256"', b'"sha"'), "not the bytes that were written"),
    ],
)
def test_a_damaged_plan_is_built_again(
    name: str,
    damage: Callable[[bytes], bytes],
    reason: str,
    cache: PlanCache,
    tmp_path: Path,
    logged: Callable[[], list[str]],
) -> None:
    whole = cache.get(_spec(4)).content
    path = _plan_file(tmp_path).with_suffix(name)
    path.write_bytes(damage(path.read_bytes()))
    again = cache.get(_spec(4))
    assert again.was_built
    assert len(again.content) == len(whole)
    (line,) = logged()
    assert line.startswith("plan last-fused-bfloat16 is built again: ")
    assert reason in line
    assert not cache.get(_spec(4)).was_built


@pytest.mark.parametrize("missing", [".plan", ".json"])
def test_half_of_a_plan_is_none(missing: str, cache: PlanCache, tmp_path: Path) -> None:
    cache.get(_spec(4))
    _plan_file(tmp_path).with_suffix(missing).unlink()
    assert cache.get(_spec(4)).was_built
    assert not cache.get(_spec(4)).was_built


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_plan_is_not_run(
    cache: PlanCache, tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    cache.get(_spec(4))
    os.chown(_plan_file(tmp_path), 65534, -1)
    assert cache.get(_spec(4)).was_built
    (line,) = logged()
    assert line.endswith("belongs to another user")


def test_a_directory_that_cannot_be_written_costs_a_warning(
    library: Library, tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    (tmp_path / "file").touch()
    assert PlanCache(library, tmp_path / "file" / "plans", None).get(_spec(4)).was_built
    (line,) = logged()
    assert line.startswith(f"cannot write {tmp_path}/file/plans/tensorrt_rtx-")
    assert "Not a directory. The server works" in line
    assert "give a cache directory that can be written" in line


_GET = """
    import logging, pathlib, resource, sys
    import torch
    from engine.tensorrt_backend.library import load_library
    from engine.tensorrt_backend.plan_cache import PlanCache
    from engine.tensorrt_backend.plans import PlanSpec
    from engine.tensorrt_backend.segments import SegmentKind, segment_spec
    from tests.support.decoders import model_config

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    spec = PlanSpec(segment_spec(SegmentKind.LAST, model_config("llama2"), torch.bfloat16), (4,))
    cache = PlanCache(load_library("tensorrt_rtx"), pathlib.Path(sys.argv[1]), None)
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    print("ready", flush=True)
    sys.stdin.readline()
    plan = cache.get(spec)
    print("built" if plan.was_built else "read", len(plan.content), flush=True)
"""


def _process(directory: Path, disk: str = "fine") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_GET), str(directory), disk]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_two_processes_at_once_one_builds_and_one_reads(tmp_path: Path) -> None:
    processes = [_process(tmp_path), _process(tmp_path)]
    for process in processes:  # both start now
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    words = sorted(process.communicate()[0].split()[0] for process in processes)
    assert words == ["built", "read"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = _process(tmp_path, "full")
    warning, result = process.communicate("\n")[0].splitlines()
    assert warning.startswith("cannot write ")
    assert "File too large" in warning
    assert "free some disk space" in warning
    assert result.startswith("built ")
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_library_without_a_kernel_cache_has_none(library: Library, tmp_path: Path) -> None:
    kernels = KernelCache(replace(library, has_runtime_cache=False), tmp_path / "kernels.bin", "gpu", "580")
    kernels.attach(None)
    kernels.save()
    assert list(tmp_path.iterdir()) == []
