"""Which library is taken, and what is said where none can be."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import BackendUnavailableError, TensorRTError
from engine.tensorrt_backend.library import Library, load_library


@pytest.fixture
def rtx() -> Library:
    return load_library("tensorrt_rtx")


def _install(name: str, source: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(root))
    for module in (name, f"{name}_bindings"):
        monkeypatch.setitem(sys.modules, module, None)  # also restored afterwards
        monkeypatch.delitem(sys.modules, module)


def test_the_library_is_the_same_for_the_whole_process(rtx: Library) -> None:
    assert load_library("tensorrt_rtx") is rtx
    assert (rtx.name, rtx.version) == ("tensorrt_rtx", "1.4.0.76")
    assert rtx.is_rtx
    assert rtx.can_build_without_gpu
    assert rtx.has_runtime_cache


def test_auto_takes_what_there_is(rtx: Library) -> None:
    assert load_library() is rtx


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="'onnx': must be one of auto, tensorrt, tensorrt_rtx"):
        load_library("onnx")


def test_a_missing_library_comes_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"tensorrt: not installed\. Do: pip install 'tensorrt>="
    ):
        load_library("tensorrt")


def test_an_old_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install("tensorrt", "__version__ = '10.3.0'", tmp_path, monkeypatch)
    with pytest.raises(BackendUnavailableError, match=r"10\.3\.0 is too old, 10\.13 is the lowest\. Do: pip"):
        load_library("tensorrt")


def test_a_broken_library_says_what_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install("tensorrt", "raise OSError('libnvinfer.so.10: cannot open')", tmp_path, monkeypatch)
    with pytest.raises(BackendUnavailableError, match=r"tensorrt does not load: libnvinfer\.so\.10"):
        load_library("tensorrt")


def test_auto_passes_over_a_library_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: Library
) -> None:
    _install("tensorrt", "__version__ = '8.6.1'", tmp_path, monkeypatch)
    assert load_library("auto") is rtx


def test_every_problem_is_listed_where_nothing_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.tensorrt_backend import library

    library._load.cache_clear()
    _install("tensorrt", "__version__ = '8.6.1'", tmp_path, monkeypatch)
    _install("tensorrt_rtx", "__version__ = '1.0.0.21'", tmp_path, monkeypatch)
    with pytest.raises(BackendUnavailableError) as error:
        load_library("auto")
    assert "tensorrt: version 8.6.1 is too old" in str(error.value)
    assert "tensorrt_rtx: version 1.0.0.21 is too old" in str(error.value)


def test_hopper_runs_on_versions_before_1_7_only(rtx: Library) -> None:
    rtx.check_gpu("NVIDIA H200", (9, 0))
    newer = replace(rtx, version="1.7.1.116")
    newer.check_gpu("NVIDIA RTX 6000 Ada", (8, 9))
    with pytest.raises(BackendUnavailableError, match=r"H200.*pip install tensorrt_rtx==1\.4\.0\.76"):
        newer.check_gpu("NVIDIA H200", (9, 0))
    replace(newer, is_rtx=False).check_gpu("NVIDIA H200", (9, 0))


def test_gpus_before_turing_are_refused(rtx: Library) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"GTX 1080 \(compute capability 6\.1\).*--backend torch"
    ):
        rtx.check_gpu("GTX 1080", (6, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.float8_e4m3fn])
def test_dtypes_there_and_back(dtype: torch.dtype, rtx: Library) -> None:
    assert rtx.torch_dtype(rtx.dtype(dtype)) == dtype


def test_dtypes_without_a_counterpart(rtx: Library) -> None:
    with pytest.raises(TensorRTError, match=r"torch\.complex64 has no counterpart in tensorrt_rtx"):
        rtx.dtype(torch.complex64)
    with pytest.raises(TensorRTError, match="has no counterpart in torch"):
        rtx.torch_dtype(rtx.module.DataType.INT4)


def test_a_failure_carries_the_words_of_the_library_once(rtx: Library) -> None:
    rtx.logger.log(rtx.module.ILogger.ERROR, "no such kernel\n")
    assert str(rtx.failure("building")) == "building: no such kernel"
    assert str(rtx.failure("building")) == "building: tensorrt_rtx 1.4.0.76 gave no reason"
