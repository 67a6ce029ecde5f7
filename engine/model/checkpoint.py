"""Reads a Hugging Face directory's safetensors into weights on a device. Never pickle."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights, ModelWeights, WeightSpec, weight_specs

Progress = Callable[[int, int], None]
"""Called with the bytes of the checkpoint read so far, and all of them."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F32", "BF16", "F16")
# Buffers that old versions of transformers saved: computed, not learned.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
_LAYER = re.compile(r"layers\.(\d+)\.")

_PICKLED = (
    "only pickled weights, which can run code when they are loaded. If you trust them, convert them once: "
    "transformers.AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(new_dir)"
)

_Handle = Any  # what safe_open returns: an untyped class of a compiled module


def load_weights(
    model_dir: Path,
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> ModelWeights[torch.Tensor]:
    """Memory-map the checkpoint and copy it, tensor by tensor, converted to dtype, to the device.

    Raises CheckpointError with all missing, unexpected and wrongly shaped tensors at once, or with the file
    that cannot be read. Nothing is allocated before the whole checkpoint was found to fit.
    """
    specs = list(weight_specs(config))
    with ExitStack() as stack:
        tensors = _open_tensors(model_dir, stack)
        _check(model_dir, config, specs, tensors)
        report = _Reporter(specs, tensors, progress)
        loaded = [(spec, _load(spec, tensors, device, dtype, report)) for spec in specs]
    return _assemble(config, loaded)


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or single. Raises CheckpointError when there are
    none.
    """
    index = model_dir / _INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not a checkpoint's index: {error!r}") from error
        if missing := [name for name in names if not (model_dir / name).exists()]:
            raise CheckpointError(f"{model_dir}: files that {_INDEX} names are missing: {', '.join(missing)}")
        return [model_dir / name for name in names]
    if (model_dir / _SINGLE).exists():
        return [model_dir / _SINGLE]
    if any(model_dir.glob("*.bin")) or any(model_dir.glob("*.pth")):
        raise CheckpointError(f"{model_dir}: {_PICKLED}")
    raise CheckpointError(f"{model_dir}: neither {_SINGLE} nor {_INDEX}")


def _open_tensors(model_dir: Path, stack: ExitStack) -> dict[str, _Handle]:
    """Tensor name -> the open file that holds it."""
    tensors: dict[str, _Handle] = {}
    for path in checkpoint_files(model_dir):
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: corrupt or truncated: {error}") from error
        tensors.update(dict.fromkeys(handle.keys(), handle))
    return tensors


def _check(
    model_dir: Path, config: ModelConfig, specs: list[WeightSpec], tensors: Mapping[str, _Handle]
) -> None:
    expected = {name: spec.source_shape(i) for spec in specs for i, name in enumerate(spec.sources)}
    unexpected = [name for name in tensors if name not in expected and not _IGNORED.search(name)]
    if config.tie_word_embeddings:
        unexpected = [name for name in unexpected if name != "lm_head.weight"]
    wrong = list(_wrong_tensors(expected, tensors))
    missing = [name for name in expected if name not in tensors]
    if missing or unexpected or wrong:
        parts = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("wrong", wrong)]
        message = "\n".join([f"{model_dir}: not the checkpoint of this config.json", *filter(None, parts)])
        raise CheckpointError(message)


def _wrong_tensors(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, _Handle]) -> Iterator[str]:
    for name, shape in expected.items():
        if name in tensors:
            found = tensors[name].get_slice(name)
            if tuple(found.get_shape()) != shape:
                yield f"{name} has shape {list(found.get_shape())}, expected {list(shape)}"
            elif found.get_dtype() not in _DTYPES:
                yield f"{name} has dtype {found.get_dtype()}, expected one of {', '.join(_DTYPES)}"


def _listed(what: str, problems: list[str]) -> str | None:
    """All of them, with layers that have the same problem on one line."""
    layers_of: dict[str, list[str]] = {}
    for problem in problems:
        layers = layers_of.setdefault(_LAYER.sub("layers.*.", problem), [])
        layers += _LAYER.findall(problem)
    lines = [
        f"{problem} (* = {', '.join(layers)})" if layers else problem for problem, layers in layers_of.items()
    ]
    return "\n  ".join([f"{what} ({len(problems)}):", *lines]) if lines else None


class _Reporter:
    """Adds up bytes for the caller's progress bar."""

    def __init__(
        self, specs: list[WeightSpec], tensors: Mapping[str, _Handle], progress: Progress | None
    ) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0
        if progress is not None:
            for name in (name for spec in specs for name in spec.sources):
                found = tensors[name].get_slice(name)
                self._total += torch.Size(found.get_shape()).numel() * (
                    4 if found.get_dtype() == "F32" else 2
                )

    def add(self, tensor: torch.Tensor) -> None:
        if self._progress is not None:
            self._done += tensor.nbytes
            self._progress(self._done, self._total)


def _load(
    spec: WeightSpec,
    tensors: Mapping[str, _Handle],
    device: torch.device,
    dtype: torch.dtype,
    report: _Reporter,
) -> torch.Tensor:
    """Stack the sources of one weight."""
    weight = torch.empty(spec.shape, device=device, dtype=dtype)
    for rows, name in zip(torch.split_with_sizes(weight, spec.num_rows), spec.sources, strict=True):
        source = tensors[name].get_tensor(name)
        rows.copy_(source)
        report.add(source)
    return weight


def _assemble(
    config: ModelConfig, loaded: list[tuple[WeightSpec, torch.Tensor]]
) -> ModelWeights[torch.Tensor]:
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(config.num_layers)]
    outside: dict[str, torch.Tensor] = {}
    for spec, weight in loaded:
        (outside if spec.layer is None else layers[spec.layer])[spec.field] = weight
    outside.setdefault("head", outside["embedding"])
    return ModelWeights(layers=tuple(LayerWeights(**fields) for fields in layers), **outside)
