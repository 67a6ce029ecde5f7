"""The version of what runs."""

from importlib import metadata


def version() -> str:
    """The installed distribution's version; "source" when run from a checkout that is not installed."""
    try:
        return metadata.version("inflight-engine")
    except metadata.PackageNotFoundError:
        return "source"
