"""What users of the load tool meet.

LoadError
├── OptionError     an option is wrong: names it, the value and the limit
└── TargetError     the server cannot be reached, or cannot take this load
"""


class LoadError(Exception):
    """Root of what the load tool raises on purpose."""


class OptionError(LoadError):
    """An option is wrong. The message reads `--option value: limit`."""

    def __init__(self, option: str, value: object, limit: str) -> None:
        super().__init__(f"{option} {value}: {limit}")


class TargetError(LoadError):
    """The server cannot be reached, or cannot take this load."""
