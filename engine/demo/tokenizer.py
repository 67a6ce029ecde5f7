"""The demo model's tokenizer: byte-level BPE, one token a digit, trained on the tasks' own texts.

All 256 bytes are in the vocabulary, so any text can be encoded. Digits never merge, which is what makes
arithmetic learnable. A prompt begins with `<|begin|>`, put there by the post-processor.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.demo.task import END
from engine.demo.tasks import TASKS

BEGIN = "<|begin|>"
BEGIN_ID, END_ID = 0, 1
VOCAB_SIZE = 960
MAX_LENGTH = 2048

_DOCUMENTS_PER_TASK = 1000


def build_tokenizer(seed: int = 0) -> Tokenizer:
    """Trained from nothing; the same seed gives the same vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documents(Random(seed)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def _documents(rng: Random) -> Iterator[str]:
    for task in TASKS.values():
        for _ in range(_DOCUMENTS_PER_TASK):
            stem = task.draw(rng, held_out=False)
            yield stem + "".join(piece for piece in islice(task.solve(stem), 20) if piece != END)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
