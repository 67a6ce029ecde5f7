"""What the check at the start lets pass, and what not. On a CPU, where it is the same."""

from collections.abc import Callable

import pytest
import torch

from engine.loading import LoadedModel
from engine.tensorrt_backend.self_check import SelfCheck
from engine.torch_backend.segments import TorchSegments
from tests.support.decoders import Decoder, model_config, random_decoder

BUCKET = 70
Spoil = Callable[[torch.Tensor], None]


class Spoilt(TorchSegments):
    """Torch's segments with something done to the outputs: of layers, or of the last segment."""

    def __init__(self, decoder: Decoder, spoil: Spoil) -> None:
        super().__init__(decoder.config, decoder.weights)
        self._spoil = spoil

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        super().middle(layer, attended, residual, residual_out, qkv_out)
        self._spoil(qkv_out)

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        super().last(attended, residual, logits_out)
        self._spoil(logits_out)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(model_config("llama2"), torch.bfloat16, "cpu")


def problem(decoder: Decoder, spoil: Spoil, part: str) -> str | None:
    model = LoadedModel(decoder.config, decoder.weights, torch.device("cpu"), torch.bfloat16)
    return SelfCheck(model).problem(Spoilt(decoder, spoil), BUCKET, part=part)


def _round_otherwise(out: torch.Tensor) -> None:
    out *= 1 + 2**-8


@pytest.mark.parametrize("part", ["layers", "last"])
def test_rounding_passes(decoder: Decoder, part: str) -> None:
    assert problem(decoder, lambda out: None, part) is None
    assert problem(decoder, _round_otherwise, part) is None


def _drop_row(out: torch.Tensor) -> None:
    out[-1] = 0


def _drop_tail(out: torch.Tensor) -> None:
    out[:, -32:] = 0


def _put_nan(out: torch.Tensor) -> None:
    out[3, 5] = torch.nan


@pytest.mark.parametrize("spoil", [_drop_row, _drop_tail, _put_nan])
@pytest.mark.parametrize(
    ("part", "name"), [("layers", "middle segment of layer 1"), ("last", "last segment")]
)
def test_lost_rows_lost_tiles_and_nan_do_not(decoder: Decoder, spoil: Spoil, part: str, name: str) -> None:
    found = problem(decoder, spoil, part)
    assert found is not None
    assert found.startswith(name)


def test_outputs_that_were_not_written_are_seen(decoder: Decoder) -> None:
    class Idle(TorchSegments):
        def first(self, *tensors: torch.Tensor) -> None:
            """Leaves the outputs as they are."""

    model = LoadedModel(decoder.config, decoder.weights, torch.device("cpu"), torch.bfloat16)
    found = SelfCheck(model).problem(Idle(decoder.config, decoder.weights), BUCKET, part="layers")
    assert found is not None
    assert "nan" in found
