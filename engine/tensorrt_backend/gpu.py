"""The GPU and its driver, as files on disk are keyed by, and as people want to read."""

import re
from dataclasses import dataclass

import torch
from cuda.bindings import runtime


@dataclass(frozen=True, slots=True)
class Gpu:
    """name: as the driver says it. capability: compute capability. driver: the CUDA version that it supports,
    such as "13.0"."""

    name: str
    capability: tuple[int, int]
    driver: str
    total_bytes: int

    @property
    def slug(self) -> str:
        """The name, for a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def current_gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        driver=driver_version(),
        total_bytes=properties.total_memory,
    )


def driver_version() -> str:
    """The CUDA version that the driver supports; "none" without a driver."""
    error, version = runtime.cudaDriverGetVersion()
    if int(error) != 0 or not version:
        return "none"
    return f"{version // 1000}.{version % 1000 // 10}"
