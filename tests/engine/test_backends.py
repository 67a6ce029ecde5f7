"""Which backend is chosen, and what is said where it is not the one that was hoped for."""

import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import backends
from engine.backends import build_backend, choose_backend, why_no_compiler, why_no_packages, why_not_tensorrt
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import BackendUnavailableError, ConfigError
from engine.nvidia import Driver

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be used")


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(MODEL_DIR, **changes)


def test_torch_is_what_it_says() -> None:
    assert choose_backend(options(backend="torch")) == "torch"


def test_on_the_cpu_there_is_no_choice_and_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_backend(options(device="cpu")) == "torch"
    assert caplog.records == []


def test_tensorrt_on_the_cpu_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="cannot run here: it needs an NVIDIA GPU, and"):
        choose_backend(options(device="cpu", backend="tensorrt"))


@without_gpu
def test_tensorrt_without_a_gpu_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="backend 'tensorrt' cannot run here: "):
        build_backend(options(backend="tensorrt"))


@without_gpu
def test_a_gpu_that_cannot_be_used_is_not_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver("470.57", ("Tesla T4",))
    for module in (backends, sys.modules["engine.nvidia"]):
        monkeypatch.setattr(module, "find_driver", lambda: driver)
    assert choose_backend(options()) == "torch"
    (message,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert message.startswith("this runs on the CPU: Tesla T4 (driver 470.57) is here, but torch ")


@pytest.mark.parametrize(("module", "requirement"), backends.GPU_MODULES.items())
def test_a_missing_package_comes_with_the_command_that_installs_it(
    module: str, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = backends.has_module
    monkeypatch.setattr(backends, "has_module", lambda name: name != module and has(name))
    assert why_no_packages() == f"{module} is not installed. Do: pip install '{requirement}'"


def test_the_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(backends.GPU_MODULES.values()) < set(project["optional-dependencies"]["gpu"])


def test_a_missing_parent_of_a_package_is_a_missing_package() -> None:
    assert not backends.has_module("no_such_parent.child")


def test_all_packages_are_here_for_tests() -> None:
    assert why_no_packages() is None


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert why_no_compiler() == "Triton needs a C compiler. Do: apt-get install gcc"


@pytest.mark.gpu
def test_a_gpu_with_all_packages_runs_tensorrt() -> None:
    assert why_not_tensorrt(options()) is None
    assert choose_backend(options()) == "tensorrt"


def test_a_gpu_that_fails_at_the_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr("engine.torch_backend.build.build", fail)
    with pytest.raises(BackendUnavailableError, match=r"\(CUDA error: uncorrectable ECC error\): `nv"):
        build_backend(options(device="cpu"))


def test_a_gpu_without_enough_memory_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of "
            "which 5.75 MiB is free. Of the allocated memory 78.00 GiB is allocated by PyTorch."
        )

    monkeypatch.setattr("engine.torch_backend.build.load_model", fail)
    with pytest.raises(ConfigError) as caught:
        build_backend(options(device="cpu"))
    message = str(caught.value)
    assert message.startswith(f"{MODEL_DIR} does not fit the device: CUDA out of memory. Tried to allocate")
    assert "5.75 MiB is free. Do: give lower --max-num-batched-tokens" in message
    assert "by PyTorch" not in message


def test_another_triton_is_refused_before_it_compiles_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "version", lambda package: "3.7.1")
    assert why_no_packages() == (
        "triton 3.7.1 was never tried with these kernels. Do: pip install 'triton>=3.6,<3.7'"
    )


def test_kernels_without_a_compiler_end_the_start_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.tensorrt_backend import build

    def fail(*args: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(build, "build", fail)
    monkeypatch.setattr(backends, "choose_backend", lambda options: "tensorrt")
    monkeypatch.setattr(backends, "why_no_compiler", lambda: "Triton needs a C compiler. Do: ...")
    with pytest.raises(BackendUnavailableError, match=r"could not be compiled: Triton needs a C compiler"):
        build_backend(options())
    monkeypatch.setattr(backends, "why_no_compiler", lambda: None)
    with pytest.raises(RuntimeError, match="Failed to find C compiler"):
        build_backend(options())
