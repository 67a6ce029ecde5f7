"""Where the chosen forms of a model are kept."""

from dataclasses import replace
from pathlib import Path

import torch

from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.disk_cache import CacheFile, Miss
from engine.tensorrt_backend.gpu import Gpu
from engine.tensorrt_backend.library import load_library
from engine.tensorrt_backend.selection_file import selection_file
from tests.support.decoders import model_config


def test_choices_for_other_buckets_share_a_directory(tmp_path: Path) -> None:
    library, config = load_library("tensorrt_rtx"), model_config("llama2")
    gpu = Gpu("NVIDIA H200", (9, 0), "13.0", 140 << 30)

    def file(*tokens: int, decode: int = 1, gpu: Gpu = gpu) -> CacheFile:
        buckets = Buckets(tokens, (decode,))
        return selection_file(tmp_path, library, gpu, config, torch.bfloat16, buckets)

    made = {b"a": (1, 4), b"b": (1, 8), b"c": (1, 4, 8)}
    for content, tokens in made.items():
        file(*tokens).write(content)
    assert [file(*tokens).read() for tokens in made.values()] == list(made)
    assert file(1, 4, decode=4).read() == Miss(None)
    assert file(1, 4, gpu=replace(gpu, driver="13.1")).read() == Miss("driver was 13.0, is 13.1")
