"""`inflight doctor`, and that nothing here needs the packages for GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.nvidia import Driver
from engine.serving import cli, doctor
from engine.serving.doctor import examine

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be used")

# Imports of these fail as if nobody had installed them.
WITHOUT_GPU_PACKAGES = """
import sys
for name in ("triton", "cuda", "tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
    sys.modules[name] = None
"""


def run(code: str, *argv: str) -> str:
    """What it prints, in a process without the packages."""
    command = [sys.executable, "-c", WITHOUT_GPU_PACKAGES + code, *argv]
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def findings(plan_dir: Path | None = None) -> dict[str, tuple[str, str | None]]:
    return {finding.name: (finding.found, finding.problem) for finding in examine(plan_dir)}


def test_a_machine_without_any_optional_package_is_told_what_to_install() -> None:
    shown = run("from engine.serving.cli import main\nsys.exit(main(['doctor']))")
    lines = shown.splitlines()
    assert lines[0].startswith("inflight          ")
    assert "tensorrt: not installed. Do: pip install 'tensorrt>=" in shown
    assert "tensorrt_rtx: not installed. Do: pip install tensorrt_rtx==" in shown
    for name in ("triton", "cuda.bindings"):
        assert lines[lines.index(f"{name:<18}not installed") + 1].strip().startswith("! Do: pip install")
    assert any(line.startswith("torch backend     runs, on ") for line in lines)
    assert any(line.startswith("inflight serve    takes torch, on ") for line in lines)


def test_models_are_built_without_any_optional_package() -> None:
    code = """
from engine.config import CacheOptions, EngineOptions
from engine.demo import MODEL_DIR
from engine.serving.build import build_engine
options = EngineOptions(MODEL_DIR, device="cpu", max_model_len=64, cache=CacheOptions(num_bytes=4 << 20))
print(build_engine(options).backend)
"""
    assert run(code) == "torch\n"


@without_gpu
def test_this_machine_serves_on_its_cpu() -> None:
    found = findings()
    assert found["driver"][0] == "none"
    assert found["TensorRT"][0].startswith("tensorrt_rtx ")
    assert found["tensorrt backend"][0] == "does not run here"
    assert found["inflight serve"] == ("takes torch, on the CPU", None)


@without_gpu
def test_a_driver_that_torch_cannot_use_is_a_problem_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("470.57", ("Tesla T4",))
    for module in (doctor, sys.modules["engine.nvidia"]):
        monkeypatch.setattr(module, "find_driver", lambda: driver)
    found = findings()
    assert found["driver"][0].startswith("Tesla T4 (driver 470.57)")
    assert str(found["torch"][1]).startswith("Tesla T4 (driver 470.57) is here, but torch ")


def test_the_plan_cache_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(bytes(2048))
    (tmp_path / "a.json").write_bytes(bytes(1024))
    assert findings(tmp_path)["plan cache"] == (f"{tmp_path}: 1 plans, 3 KiB", None)
    assert findings(tmp_path / "not" / "yet")["plan cache"][1] is None


def test_a_plan_cache_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = findings(tmp_path / "file" / "plans")["plan cache"][1]
    assert (
        problem
        == f"{tmp_path / 'file'} cannot be written, so each start builds again. Do: give another --plan-dir"
    )
    assert "give --plan-dir" in str(findings(None)["plan cache"][1])


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 1 << 60)
    assert "are free there" in str(findings(tmp_path)["plan cache"][1])


def test_the_command_prints_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--plan-dir", str(tmp_path)]) == 0
    assert f"plan cache        {tmp_path}: 0 plans, 0 B\n" in capsys.readouterr().out


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    found = findings()
    assert "compute capability" in found["GPU 0"][0]
    assert found["GPU 0"][1] is None
    assert found["inflight serve"][0].startswith("takes tensorrt, on ")
