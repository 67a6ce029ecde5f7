from itertools import islice
from random import Random

import pytest

from engine.demo.data import Encoder
from engine.demo.task import END, PromptError, Task
from engine.demo.tasks import MIXTURES, TASKS

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.mark.parametrize(
    ("name", "prompt", "continuation", "finished"),
    [
        ("count_up", "7 8 9 10", " 11 12 13", False),
        ("count_up", "99,100", ",101", False),
        ("count_up", "Count up from 7:", " 7 8 9", False),
        ("count_down", "3 2", " 1 0", True),
        ("count_down", "Count down from 2:", " 2 1 0", True),
        ("count_by", "10, 20, 30", ", 40, 50", False),
        ("count_by", "10 7 4", " 1", True),
        ("count_by", "Count by 5 from 10:", " 10 15 20", False),
        ("count_by", "Count down by 40 from 100: 100", " 60 20", True),
        ("count_range", "Count from 7 to 10:", " 7 8 9 10", True),
        ("count_range", "Count from 10 to 7: 10 9", " 8 7", True),
        ("days", "Friday Saturday", " Sunday Monday", False),
        ("days", "Tue, Mon", ", Sun", False),
        ("months", "November\nDecember", "\nJanuary", False),
        ("months", "Apr,May", ",Jun", False),
        ("months", "APRIL MAY", " JUNE", False),
        ("alphabet", "w x", " y z", True),
        ("alphabet", "D, C", ", B, A", True),
        ("sums", "12 + 7 =", " 19", True),
        ("sums", "995+6=", "1001", True),
        ("differences", "What is 19 - 19?", " 0", True),
        (
            "json",
            "Ada from Paris is 36 and likes tea.\nJSON:",
            ' {"name": "Ada", "age": 36, "city": "Paris", "likes": "tea"}',
            True,
        ),
        (
            "json",
            '{"name": "Ada", "age": 36, "city": "Paris", "likes": "tea"}\nIn words:',
            " Ada is 36 years old, lives in Paris and likes tea.",
            True,
        ),
        (
            "sentences",
            "The red fox sees the blue bird. The blue bird is seen by",
            " the red fox.",
            True,
        ),
        (
            "sentences",
            "The red fox sees the blue bird. The old cat feeds the tall cow. Who feeds the tall cow?",
            " The old cat.",
            True,
        ),
        ("sentences", "The red fox sees the blue bird. What does the red fox see?", " The blue bird.", True),
        ("long_list", "1. egg\n2. fig\n3. egg", "\n4. fig\n5. egg", False),
        ("long_list", '{"id": 9, "day": "Sunday"}', '\n{"id": 10, "day": "Monday"}', False),
    ],
)
def test_the_right_continuation_is_accepted_and_others_are_not(
    name: str, prompt: str, continuation: str, finished: bool
) -> None:
    check = TASKS[name].check
    assert check(prompt, continuation, finished=finished)
    assert check(prompt, continuation[:-1], finished=False), "cut by a limit on its length"
    assert not check(prompt, continuation[:-1], finished=True)
    assert not check(prompt, continuation + "!", finished=finished)
    assert not check(prompt, continuation[:-1] + "!", finished=finished)
    assert not check(prompt, "", finished=False)
    assert not check(prompt, "", finished=True)
    if not finished:
        assert not check(prompt, continuation, finished=True), "it goes on for ever"


@every_task
def test_prompts_are_the_same_for_the_same_seed(task: Task, encoder: Encoder) -> None:
    def prompts(seed: int) -> list[str]:
        rng = Random(seed)
        return [task.draw_prompt(rng, encoder.count) for _ in range(5)]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)


@every_task
def test_no_training_document_begins_with_a_held_out_stem(task: Task) -> None:
    rng = Random(0)
    training = [task.draw(rng, held_out=False) for _ in range(500)]
    held_out = {task.draw(rng, held_out=True) for _ in range(200)}
    documents = [stem + "".join(islice(task.solve(stem), 8)) for stem in training]
    for stem in held_out:
        following = next(task.solve(stem))
        assert not any(document.startswith(stem + following) for document in documents)


@every_task
def test_a_grown_prompt_is_followed_by_the_rest(task: Task, encoder: Encoder) -> None:
    rng = Random(0)
    for _ in range(20):
        stem = task.draw(rng, held_out=False)
        pieces = list(islice(task.solve(stem), 12))
        num_said = rng.randrange(len(pieces) - 1) if len(pieces) == 12 else 0
        prompt = stem + "".join(pieces[:num_said])
        assert list(islice(task.solve(prompt), 12 - num_said)) == pieces[num_said:]


@every_task
def test_measured_prompts_have_the_lengths_asked_for_and_an_answer(task: Task, encoder: Encoder) -> None:
    rng = Random(0)
    lowest, highest = task.prompt_tokens
    for _ in range(10):
        prompt = task.draw_prompt(rng, encoder.count)
        assert lowest - 40 <= encoder.count(prompt) <= max(highest, 64)
        assert next(task.solve(prompt)) != END


def test_operands_are_held_out_however_the_sum_is_put() -> None:
    task = TASKS["sums"]
    for left in range(40):
        forms = (f"{left} + 7 =", f"{left}+7=", f"7 + {left} =", f"What is 7 + {left}?")
        assert len({task.is_held_out(form) for form in forms}) == 1


def test_about_one_stem_in_eight_is_held_out() -> None:
    task = TASKS["differences"]
    held_out = sum(task.is_held_out(f"{left} - {right} =") for left in range(100) for right in range(left))
    assert 0.1 < held_out / 4950 < 0.15


@every_task
@pytest.mark.parametrize("prompt", ["Once upon a time", "", "7", "Monday March"])
def test_other_prompts_are_refused(task: Task, prompt: str) -> None:
    with pytest.raises(PromptError):
        next(task.solve(prompt))


def test_every_task_is_trained() -> None:
    assert set(TASKS) == {name for mixture in MIXTURES.values() for name in mixture}
