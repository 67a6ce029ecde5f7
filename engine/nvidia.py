"""The NVIDIA driver and GPUs that this machine has, whether torch can use them or not."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

_SECONDS_TO_ANSWER = 20.0  # nvidia-smi wakes GPUs that sleep
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


@dataclass(frozen=True, slots=True)
class Driver:
    """version: such as "580.65.06". gpus: their names, as the driver says them."""

    version: str
    gpus: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.gpus) or 'no GPU'} (driver {self.version})"


def find_driver(proc: Path = Path("/proc"), nvidia_smi: str = "nvidia-smi") -> Driver | None:
    """What the kernel module says, or nvidia-smi where a container hides that; None: there is no driver."""
    return _read_module(proc / "driver" / "nvidia") or _ask(nvidia_smi)


def why_no_cuda() -> str | None:
    """Why torch cannot use a GPU here, and what to do about it; None: it can."""
    if torch.cuda.is_available():
        return None
    driver = find_driver()
    if driver is None:
        return "this machine has no NVIDIA GPU, or no driver for one: `nvidia-smi` should list it"
    if torch.version.cuda is None:
        return f"{driver} is here, but torch {torch.__version__} is built without CUDA. Do: pip install torch"
    return f"{driver} is here, but torch cannot use it: {_initialization_error()}"


def lost_device(error: BaseException) -> str:
    """What to tell of an error of CUDA in a step: it sticks to the process, so no further step can run."""
    reason = str(error).splitlines()[0]
    return f"the GPU is lost to this process ({reason}): restart it; an Xid error in `dmesg` may say why"


def _initialization_error() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return "it sees no GPU; is CUDA_VISIBLE_DEVICES set to none of them?"


def _read_module(root: Path) -> Driver | None:
    try:
        found = _VERSION.search((root / "version").read_text())
        gpus = tuple(_model(path) for path in sorted((root / "gpus").glob("*/information")))
    except OSError:
        return None
    return Driver(found[1], gpus) if found else None


def _model(information: Path) -> str:
    for line in information.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Model":
            return value.strip()
    return "unknown GPU"


def _ask(nvidia_smi: str) -> Driver | None:
    path = shutil.which(nvidia_smi)
    if path is None:
        return None
    command = [path, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS_TO_ANSWER)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return Driver(rows[0][0], tuple(name for _, name in rows)) if rows else None
