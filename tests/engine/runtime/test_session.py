"""What Session refuses before there is anything to run. The rest needs a GPU: test_session_gpu.py."""

import pytest

from engine.errors import BackendUnavailableError, TensorRTError
from engine.runtime import Session


def test_bytes_that_are_no_plan_are_refused() -> None:
    with pytest.raises(
        TensorRTError, match=r"serialized engine: tensorrt_rtx 1\.4\.0\.76 cannot run the plan"
    ):
        Session.from_serialized_engine(b"not a plan" * 100)


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(BackendUnavailableError, match="tensorrt: not installed"):
        Session.from_serialized_engine(b"", library="tensorrt")
