"""Tell what a model directory holds, whether it can be served, and what memory it takes.

Reads config.json only: no weights are loaded.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.model.config import ModelConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="a Hugging Face directory")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from engine.model.huggingface import load_config

    table = Table(show_header=False, box=None)
    for name, value in _rows(args.model_dir, load_config(args.model_dir)):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    return 0


def _rows(model_dir: Path, config: "ModelConfig") -> Iterator[tuple[str, str]]:
    from engine.memory import format_bytes
    from engine.model.weights import num_parameters

    num_weights = num_parameters(config)
    yield "model", model_dir.resolve().name
    yield "architecture", f"{config.architecture} (supported)"
    yield "parameters", f"{num_weights:,}"
    yield "dtype", config.dtype
    yield "weights", format_bytes(num_weights * _BYTES[config.dtype])
    yield "layers", f"{config.num_layers}{_windows(config)}"
    yield "hidden, MLP size", f"{config.hidden_size}, {config.intermediate_size}"
    yield "heads", f"{config.num_heads} x {config.head_dim}, {config.num_kv_heads} for keys and values"
    yield "vocabulary", f"{config.vocab_size:,}"
    yield "end of sequence", ", ".join(map(str, config.eos_token_ids)) or "none"
    yield "longest sequence", f"{config.max_model_len:,} tokens"
    yield "KV cache", f"{format_bytes(_kv_bytes(config, 1))} a token"
    yield "", f"{format_bytes(_kv_bytes(config, config.max_model_len))} for the longest sequence"


def _windows(config: "ModelConfig") -> str:
    windowed = [window for window in config.windows if window is not None]
    return f", {len(windowed)} with a window of {max(windowed):,} tokens" if windowed else ""


def _kv_bytes(config: "ModelConfig", num_tokens: int) -> int:
    """Keys and values of one sequence, in the checkpoint's dtype."""
    kept = sum(min(num_tokens, window or num_tokens) for window in config.windows)
    return 2 * config.kv_size * kept * _BYTES[config.dtype]
