"""What a step answers beside tokens: log-probabilities; and rows with grammars."""

from collections.abc import Callable

import pytest

from tests.engine.conftest import Server, TinyModel
from tests.engine.guided_checks import check_guided_rows
from tests.engine.logprob_checks import check_logprobs


@pytest.mark.parametrize("num_blocks", [64, 16])  # room for all, and so little that sequences are preempted
def test_logprobs_of_prompts_and_outputs(
    server: Callable[..., Server],
    tiny_model: Callable[[str], TinyModel],
    prompts: list[list[int]],
    num_blocks: int,
) -> None:
    check_logprobs(server("llama2", num_blocks), tiny_model("llama2"), prompts, steps_in_flight=1)


@pytest.mark.parametrize("num_blocks", [64, 16])
def test_grammars_hold_their_rows_alone(
    server: Callable[..., Server], prompts: list[list[int]], num_blocks: int
) -> None:
    check_guided_rows(server("llama2", num_blocks), prompts, steps_in_flight=1)
