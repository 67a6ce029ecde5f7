"""The one place that reads the environment: defaults of options."""

import os
from pathlib import Path

ADDRESS_VARIABLE = "INFLIGHT_ADDRESS"


def server_address() -> str:
    """Where clients look for a server."""
    return os.environ.get(ADDRESS_VARIABLE) or "127.0.0.1:50051"


def default_plan_dir() -> Path | None:
    """Below the user's cache directory (XDG Base Directory Specification); None for a user without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():  # the specification ignores all others
        return given / "inflight" / "plans"
    try:
        return Path.home() / ".cache" / "inflight" / "plans"
    except RuntimeError:
        return None
