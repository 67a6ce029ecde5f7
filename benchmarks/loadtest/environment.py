"""Where the tool ran, and with what."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("grpcio", "protobuf", "uvloop")


def describe_environment() -> dict[str, str]:
    """Names and values; what cannot be told is left out."""
    known = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": str(os.cpu_count()),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        **{package: metadata.version(package) for package in _PACKAGES},
    }
    return {name: value for name, value in known.items() if value}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.strip().splitlines())
