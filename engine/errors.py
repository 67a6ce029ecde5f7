"""The exception tree. Users catch these; `assert` is for our own bugs.

InflightError
├── InvalidArgumentError        a field of a request is wrong: names the field, the value and the limit
│   └── (gRPC INVALID_ARGUMENT)
├── AlreadyExistsError          a request with this id is running (ALREADY_EXISTS)
├── NotFoundError               no request with this id is running (NOT_FOUND)
├── OverloadedError             the queue is full, or the reader stalled (RESOURCE_EXHAUSTED)
├── UnavailableError            the engine is draining or dead (UNAVAILABLE)
├── StepFailedError             an exception inside a step ended the request (INTERNAL)
├── ConfigError                 an option of the server is wrong, or does not fit the machine
│   └── BackendUnavailableError no library, a wrong version, an unsupported GPU or driver: says what to do
├── TensorRTError               TensorRT refused or failed: the message carries the library's own words
└── ModelError                  the model directory cannot be served
    ├── UnsupportedModelError   unknown architecture or feature; lists what is supported
    └── CheckpointError         missing, unexpected or wrongly shaped tensors, all of them at once
"""


class InflightError(Exception):
    """Root of everything this package raises on purpose."""


class InvalidArgumentError(InflightError):
    """A field of a request is wrong. The message reads `field=value: limit`."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        self.field = field
        self.value = value
        self.limit = limit
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:77]}..."
        super().__init__(f"{field}={shown}: {limit}")


class AlreadyExistsError(InflightError):
    """A request with this id is running."""


class NotFoundError(InflightError):
    """No request with this id is running."""


class OverloadedError(InflightError):
    """The queue is full, or the client did not read for too long. Retry later."""


class UnavailableError(InflightError):
    """The engine takes no requests: it is draining, or dead."""


class StepFailedError(InflightError):
    """An exception inside a step ended the request. Other requests go on."""


class ConfigError(InflightError):
    """An option of the server is wrong, or does not fit the machine."""


class BackendUnavailableError(ConfigError):
    """The backend asked for cannot run here: no library, a wrong version, an unsupported GPU or driver.

    The message says what to do about it.
    """


class TensorRTError(InflightError):
    """TensorRT refused or failed. The message carries the library's own words."""


class ModelError(InflightError):
    """The model directory cannot be served."""


class UnsupportedModelError(ModelError):
    """Unknown architecture or feature. The message lists what is supported."""


class CheckpointError(ModelError):
    """Missing, unexpected or wrongly shaped tensors: the message lists all of them."""
