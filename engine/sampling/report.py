"""Log-probabilities on their way to the host: a row of words for each row of a step."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scheduler.step import TokenLogprobs

MAX_CANDIDATES = 64
"""Most tokens that a row can report: MAX_LOGPROBS, or what a beam search looks at."""
REPORT_WIDTH = 1 + 2 * MAX_CANDIDATES
"""int32 words of a row: the bits of a float32, the log-probability of the row's token; MAX_CANDIDATES token
ids, best first; and as many bits of their log-probabilities. Beyond the number that the row asked for all are
stale."""


def read_reports(words: npt.NDArray[np.int32], num_reported: Sequence[int]) -> list[TokenLogprobs | None]:
    """words: [n, REPORT_WIDTH]. num_reported: how many tokens each row asked for, beside its own; -1:
    nothing.
    """
    values = words.view(np.float32)
    return [
        None if count < 0 else _read(words[index], values[index], count)
        for index, count in enumerate(num_reported)
    ]


def _read(words: npt.NDArray[np.int32], values: npt.NDArray[np.float32], count: int) -> TokenLogprobs:
    ids = words[1 : 1 + count].tolist()
    top = values[1 + MAX_CANDIDATES : 1 + MAX_CANDIDATES + count].tolist()
    return TokenLogprobs(float(values[0]), tuple(ids), tuple(top))
