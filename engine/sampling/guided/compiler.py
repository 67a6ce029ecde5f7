"""From what a request asks to a grammar to follow, whatever the request asks."""

import threading
from collections.abc import Sequence

from llguidance import LLTokenizer

from engine.errors import InvalidArgumentError
from engine.sampling.guided.cache import Compiled, GrammarCache
from engine.sampling.guided.grammar import Grammar, GuideError
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.guided.vocabulary import VocabularyError, load_vocabulary
from engine.sampling.guided.worker_process import WorkerLostError, WorkerSetup
from engine.sampling.guided.workers import WorkerPool


class GrammarCompiler:
    """Compiles for one model, from any thread; the threads wait, and do not hold the GIL meanwhile.

    A grammar is tried in another process first, which is killed if that takes too long or too much memory. It
    is built in this one only when that went well: `proof` says why that is safe. The processes start with the
    first grammar, and end with this one.
    """

    def __init__(
        self,
        tokenizer_json: str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        timeout_seconds: float = 10.0,
        memory_bytes: int = 512 << 20,
        max_num_workers: int = 4,
        cache_size: int = 256,
        cache_bytes: int = 1 << 30,
    ) -> None:
        """tokenizer_json: its contents. vocab_size: the model's. memory_bytes: of one grammar being tried.

        cache_size, cache_bytes: grammars that are kept, and their memory.
        """
        self._setup = WorkerSetup(tokenizer_json, vocab_size, tuple(eos_token_ids), memory_bytes)
        self._timeout_seconds = timeout_seconds
        self._workers = WorkerPool(self._setup, max_num_workers)
        self._cache = GrammarCache(cache_size, cache_bytes)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    @property
    def num_mask_words(self) -> int:
        """32-bit words of one row's mask."""
        return -(-self._setup.vocab_size // 32)

    @property
    def worker_pids(self) -> list[int]:
        """Of the processes that try grammars, those that run now."""
        return self._workers.pids

    def prepare(self) -> None:
        """Loads the vocabulary, as the first `compile` would: 0.7 s for 128k tokens, with the GIL held.

        Raises InvalidArgumentError if the model cannot be guided, which `compile` will say then as well.
        """
        with self._lock:
            if self._vocabulary is None:
                setup = self._setup
                try:
                    self._vocabulary = load_vocabulary(
                        setup.tokenizer_json, setup.vocab_size, setup.eos_token_ids
                    )
                except VocabularyError as error:
                    raise InvalidArgumentError("guided", "", f"not with this model: {error}") from error

    def compile(self, spec: GuidedSpec) -> Grammar:
        """Waits for a worker, then timeout_seconds at most, then for what that took once more.

        Raises InvalidArgumentError, field `guided.<kind>`, when the grammar cannot be used, and
        UnavailableError when no worker can be had.
        """
        self.prepare()
        return self._cache.get(spec, self._compile)

    def close(self) -> None:
        """Kills the workers. Grammars go on working."""
        self._workers.close()

    def _compile(self, spec: GuidedSpec) -> Compiled:
        assert self._vocabulary is not None
        try:
            answer = self._workers.ask(spec, self._timeout_seconds)
            if "refused" in answer:
                raise _refusal(spec, answer["refused"])
            return Compiled(Grammar(self._vocabulary, spec.kind, answer["grammar"]), answer["num_bytes"])
        except (WorkerLostError, GuideError) as error:
            raise _refusal(spec, str(error)) from error


def _refusal(spec: GuidedSpec, reason: str) -> InvalidArgumentError:
    shown = spec.choices[0] if spec.choices else spec.text
    return InvalidArgumentError(spec.field, shown[:100], f"cannot be compiled: {reason}")
