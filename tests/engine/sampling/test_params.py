import math
from typing import Any

import pytest

from engine.errors import InvalidArgumentError
from engine.sampling.params import SamplingParams, with_seed
from scheduler.beams import BeamParams


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": math.nan}),
        ("temperature", {"temperature": math.inf}),
        ("temperature", {"temperature": 100.1}),
        ("top_k", {"temperature": 1, "top_k": -1}),
        ("top_k", {"temperature": 1, "top_k": 2**31}),
        ("top_k", {"temperature": 1, "top_k": 1.5}),
        ("top_k", {"top_k": 2}),
        ("top_p", {"temperature": 1, "top_p": 0.0}),
        ("top_p", {"temperature": 1, "top_p": 1.01}),
        ("top_p", {"temperature": 1, "top_p": math.nan}),
        ("top_p", {"top_p": 0.9}),
        ("min_p", {"temperature": 1, "min_p": -0.01}),
        ("min_p", {"temperature": 1, "min_p": 1.01}),
        ("min_p", {"min_p": 0.1}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
        ("n", {"temperature": 1, "num_outputs": 0}),
        ("n", {"temperature": 1, "num_outputs": 129}),
        ("n", {"num_outputs": 2}),
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("min_new_tokens", {"min_new_tokens": -1}),
        ("min_new_tokens", {"min_new_tokens": 5, "max_new_tokens": 4}),
        ("stop_strings", {"stop_strings": ("",)}),
        ("stop_strings", {"stop_strings": ("x" * 257,)}),
        ("stop_strings", {"stop_strings": ("x",) * 17}),
        ("stop_token_ids", {"stop_token_ids": (-1,)}),
        ("stop_token_ids", {"stop_token_ids": (True,)}),
        ("stop_token_ids", {"stop_token_ids": (1,) * 65}),
    ],
)
def test_a_wrong_field_is_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(**arguments)
    assert caught.value.field == field


def test_limits_themselves_are_allowed() -> None:
    SamplingParams(
        temperature=100.0,
        top_k=2**31 - 1,
        top_p=1e-9,
        min_p=1.0,
        seed=2**64 - 1,
        num_outputs=128,
        max_new_tokens=4,
        min_new_tokens=4,
        stop_strings=("x" * 256,) * 16,
        stop_token_ids=(0,) * 64,
    )


def test_with_seed_keeps_a_seed_and_makes_different_ones() -> None:
    assert with_seed(SamplingParams(seed=0)).seed == 0
    seeds = {with_seed(SamplingParams()).seed for _ in range(10)}
    assert len(seeds) == 10


def test_beams_and_stop_ids_together_are_bounded() -> None:
    """A row reports so many candidates."""
    SamplingParams(beam=BeamParams(16, stop_token_ids=tuple(range(48))))
    with pytest.raises(InvalidArgumentError, match=r"beam.width=16: with 49 stop ids at most 64 together"):
        SamplingParams(beam=BeamParams(16, stop_token_ids=tuple(range(49))))


def test_biases_are_of_different_ids() -> None:
    with pytest.raises(InvalidArgumentError, match="logit_bias=2: ids must all be different"):
        SamplingParams(logit_bias=((4, 1.0), (4, 2.0)))
