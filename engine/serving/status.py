"""Errors to gRPC statuses: one table."""

import logging

import grpc
from google.protobuf.message import DecodeError

from engine.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    StepFailedError,
    UnavailableError,
)
from engine.serving.request_params import field_path

logger = logging.getLogger(__name__)

STATUS_CODES: dict[type[Exception], grpc.StatusCode] = {
    DecodeError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    StepFailedError: grpc.StatusCode.INTERNAL,
}
_MAX_DETAILS_LENGTH = 500  # details travel in a header; 8 kB of those is what every client takes


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and details for an error that ended a call. What nobody expected is logged, not shown."""
    code = STATUS_CODES.get(type(error))
    if code is None:
        logger.error("a call failed", exc_info=error)
        return grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__}): see the server's log"
    if isinstance(error, InvalidArgumentError):
        error = InvalidArgumentError(field_path(error.field), error.value, error.limit)
    return code, str(error)[:_MAX_DETAILS_LENGTH]
