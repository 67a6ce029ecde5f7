"""The demo model in the package: a small Llama, trained on texts whose continuation can be checked."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""A Hugging Face directory: config.json, generation_config.json, model.safetensors, the tokenizer's files."""
