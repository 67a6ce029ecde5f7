"""The files of the trained model, in Hugging Face's format."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.demo.network import Network, Shape
from engine.demo.tokenizer import BEGIN_ID, END_ID


def save_configs(shape: Shape, folder: Path) -> None:
    """Writes config.json and generation_config.json."""
    ids = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": END_ID}
    for name, content in (
        ("config.json", shape.to_config() | ids),
        ("generation_config.json", {"do_sample": False} | ids),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def save_weights(network: Network, folder: Path) -> None:
    """Writes model.safetensors in bfloat16. A reader never sees half a file: it replaces the one before."""
    weights = {name: p.detach().to("cpu", torch.bfloat16) for name, p in network.named_parameters()}
    unfinished = folder / "model.safetensors.part"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # save_file lets nobody else read it
    os.replace(unfinished, folder / "model.safetensors")
