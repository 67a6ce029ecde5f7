"""What a plugin implements: the classic callables, one object an output, and the batched ones."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from engine.sampling.custom.context import RowContext, RowTokens
from engine.sampling.custom.parameters import NoParameters

P = TypeVar("P")


class LogitsProcessor(ABC):
    """Changes the scores of one output before its next token is chosen. Called for each of its tokens.

    A class is its own factory: an object is made with the request's parameters (an instance of `parameters`)
    for each output, and again, with a first step above 0, when the output resumes after a preemption.
    """

    parameters: ClassVar[type] = NoParameters

    @abstractmethod
    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> Tensor:
        """step: tokens generated so far. input_ids: int64 [1, tokens of prompt and output].

        scores: float32 [1, vocab_size]; may be changed in place, but not kept: the memory is the batch's.
        Returns the scores, of the same shape, dtype and device. What it raises ends the request alone.
        """
        ...


class StoppingCriteria(ABC):
    """Says after each token whether an output ends. Objects are made as those of LogitsProcessor."""

    parameters: ClassVar[type] = NoParameters

    @abstractmethod
    def __call__(self, step: int, input_ids: Tensor, scores: Tensor) -> "bool | Tensor":
        """step: tokens generated before the newest. input_ids: int64 [1, tokens], with the newest.

        scores: float32 [1, vocab_size], what the newest was chosen from, before temperature.
        Returns a bool, or a bool tensor of one element, which on a GPU saves a wait.
        """
        ...


class _Batched(ABC, Generic[P]):
    """One object for all rows, made without arguments when the server starts. Keeps state per row on the
    device, in tensors of context.max_num_rows + 1 rows.

    parameters: a frozen dataclass (see parameters.py). is_capturable: whether apply() or check() may be
    recorded in a CUDA graph: it reads all it needs from memory that stays where it is, launches the same
    kernels whatever is in there, and neither waits for the device nor allocates outside torch. Then it runs
    in every step, for rows that never asked for it as well. Where it is not, it is called with the rows that
    asked, and their steps run without a graph.
    """

    parameters: ClassVar[type] = NoParameters
    is_capturable: ClassVar[bool] = False

    @abstractmethod
    def allocate(self, context: RowContext) -> None:
        """Make the state of all rows, such that none is affected. Once, before everything else."""
        ...

    @abstractmethod
    def add(self, row: int, parameters: P, tokens: RowTokens) -> None:
        """An output that asked for this takes the row. On the stream of the steps. What it raises ends that
        request alone.
        """
        ...

    @abstractmethod
    def remove(self, row: int) -> None:
        """The output has left the row, or add() has raised: from now on the row is not affected."""
        ...


class BatchedLogitsProcessor(_Batched[P]):
    """Changes the scores of many rows at once.

    changes_argmax: whether it can make another token the most likely one. If it cannot, it is left out for
    rows that decode greedily.
    """

    changes_argmax: ClassVar[bool] = True

    @abstractmethod
    def apply(self, logits: Tensor, rows: Tensor) -> None:
        """Change logits, float32 [n, vocab_size], in place. rows: int64 [n], all different but for padding,
        of number max_num_rows. On the stream of the steps. Rows that were never added stay bit for bit.
        """
        ...


class BatchedStoppingCriteria(_Batched[P]):
    """Says of many rows at once whether they end."""

    @abstractmethod
    def check(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """token_ids: int64 [n], the tokens just sampled. rows: as in apply(). Returns bool [n]; what it says
        of rows that did not ask is ignored.
        """
        ...
