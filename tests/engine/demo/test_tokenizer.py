import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.demo import MODEL_DIR
from engine.demo.data import Encoder
from engine.demo.task import END, Task
from engine.demo.tasks import TASKS
from engine.demo.tokenizer import BEGIN, BEGIN_ID, END_ID, VOCAB_SIZE, build_tokenizer, save_tokenizer

PACKAGED = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = PACKAGED.encode(text).ids
    assert ids[0] == BEGIN_ID
    assert PACKAGED.decode(ids) == text or BEGIN in text or END in text


def test_special_tokens_and_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(BEGIN) == BEGIN_ID
    assert tokenizer.token_to_id(END) == END_ID
    assert tokenizer.get_vocab_size() == VOCAB_SIZE


def test_a_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2048", add_special_tokens=False).tokens == ["2", "0", "4", "8"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_text_is_encoded_as_its_pieces_are(task: Task, encoder: Encoder) -> None:
    """Or the model would meet other tokens when it serves than it was trained on."""
    rng = Random(0)
    for _ in range(50):
        stem = task.sample(rng)
        pieces = [piece for piece in islice(task.solve(stem), 10) if piece != END]
        joined = [token for piece in (stem, *pieces) for token in encoder.encode(piece)]
        assert list(encoder.encode(stem + "".join(pieces))) == joined


def test_the_packaged_tokenizer_is_what_the_script_builds(tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer(), tmp_path)
    built, packaged = (
        json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (tmp_path, MODEL_DIR)
    )
    assert built["vocab"] == packaged["vocab"]
    assert built["merges"] == packaged["merges"]
