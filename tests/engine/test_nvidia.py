"""What the machine's driver says, from files and a program as they are on real machines."""

from pathlib import Path

import pytest
import torch

from engine import nvidia
from engine.errors import ConfigError
from engine.loading import choose_device
from engine.nvidia import Driver, find_driver, why_no_cuda

MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
OLD_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57  Tue Jul 13 16:14:05 UTC 2021\n"
NOWHERE = Path("/no/such/proc")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU can be used")


def proc(root: Path, version: str, *gpus: str) -> Path:
    folder = root / "driver" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text(version)
    for number, name in enumerate(gpus):
        card = folder / "gpus" / f"0000:0{number}:00.0"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 57\n")
    return root


def program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_kernel_module_tells_version_and_gpus(tmp_path: Path) -> None:
    found = find_driver(proc(tmp_path, MODULE, "NVIDIA H200", "NVIDIA L4"), "no-such-program")
    assert found == Driver("580.65.06", ("NVIDIA H200", "NVIDIA L4"))
    assert str(found) == "NVIDIA H200, NVIDIA L4 (driver 580.65.06)"


def test_versions_of_two_parts_and_machines_without_cards(tmp_path: Path) -> None:
    found = find_driver(proc(tmp_path, OLD_MODULE), "no-such-program")
    assert str(found) == "no GPU (driver 470.57)"


def test_nvidia_smi_is_asked_where_the_module_cannot_be_seen(tmp_path: Path) -> None:
    smi = program(tmp_path / "nvidia-smi", "echo '580.65.06, NVIDIA H200'; echo '580.65.06, NVIDIA H200'")
    assert find_driver(NOWHERE, smi) == Driver("580.65.06", ("NVIDIA H200", "NVIDIA H200"))


@pytest.mark.parametrize("body", ["exit 9", "echo No devices were found"])
def test_an_nvidia_smi_without_a_driver_is_none(tmp_path: Path, body: str) -> None:
    assert find_driver(NOWHERE, program(tmp_path / "nvidia-smi", body)) is None


def test_no_driver(tmp_path: Path) -> None:
    assert find_driver(tmp_path, "no-such-program") is None


@without_gpu
def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: None)
    assert "no NVIDIA GPU, or no driver for one" in str(why_no_cuda())
    with pytest.raises(ConfigError, match="device 'cuda': this machine has no NVIDIA GPU"):
        choose_device("cuda")


@without_gpu
def test_a_torch_without_cuda_is_told_from_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("580.65.06", ("NVIDIA H200",)))
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = str(why_no_cuda())
    assert reason.startswith("NVIDIA H200 (driver 580.65.06) is here, but torch ")
    assert reason.endswith("is built without CUDA. Do: pip install torch")


@without_gpu
def test_torch_says_what_is_wrong_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("470.57", ("Tesla T4",)))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert why_no_cuda() == (
        "Tesla T4 (driver 470.57) is here, but torch cannot use it: "
        "The NVIDIA driver on your system is too old (found version 11040)."
    )
