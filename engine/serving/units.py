"""Sizes as people write them."""

import re

_UNITS = "BKMGT"
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def format_bytes(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    exponent = 0
    while num_bytes >= 1024 and exponent < len(_UNITS) - 1:
        num_bytes, exponent = num_bytes / 1024, exponent + 1
    return f"{num_bytes:.4g} {_UNITS[exponent]}{'iB' if exponent else ''}"


def parse_bytes(text: str) -> int:
    """Bytes of "1.5G", "512 MiB" or "4096"; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 4096, 512M or 1.5G")
    number, unit = match.groups()
    return int(float(number) * 1024 ** _UNITS.index(unit.upper() or "B"))
