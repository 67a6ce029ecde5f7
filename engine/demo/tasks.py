"""The demo model's tasks, and how often each is drawn for training rows of each length."""

from engine.demo import arithmetic, long_lists, records, sentences, sequences
from engine.demo.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("count_up", sequences.sample_count_up, sequences.solve),
        Task("count_down", sequences.sample_count_down, sequences.solve),
        Task("count_by", sequences.sample_count_by, sequences.solve),
        Task("count_range", sequences.sample_count_range, sequences.solve),
        Task("days", sequences.sample_days, sequences.solve),
        Task("months", sequences.sample_months, sequences.solve),
        Task("alphabet", sequences.sample_alphabet, sequences.solve),
        Task("sums", arithmetic.sample_sum, arithmetic.solve, arithmetic.key),
        Task("differences", arithmetic.sample_difference, arithmetic.solve, arithmetic.key),
        Task("json", records.sample, records.solve, records.key),
        Task("sentences", sentences.sample, sentences.solve),
        Task("long_list", long_lists.sample, long_lists.solve, prompt_tokens=(1024, 1983)),
    )
}

MIXTURES: dict[int, dict[str, int]] = {
    64: {
        "sentences": 12,
        "sums": 5,
        "differences": 5,
        "json": 3,
        "count_by": 3,
        "count_range": 2,
        "count_up": 1,
        "count_down": 1,
        "alphabet": 1,
        "days": 1,
        "months": 1,
    },
    256: {
        "count_by": 3,
        "count_range": 2,
        "count_up": 1,
        "count_down": 2,
        "alphabet": 1,
        "days": 1,
        "months": 1,
        "long_list": 2,
    },
    2048: {"long_list": 6, "count_up": 1, "count_down": 1, "count_by": 1, "days": 1, "months": 1},
}
"""Row length in tokens -> task -> weight. What takes longest to learn weighs most."""
