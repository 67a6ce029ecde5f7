"""The two libraries for guided decoding side by side: xgrammar and llguidance, whichever are installed.

    python -m benchmarks.guided_libraries [--train-vocabulary 128000] [--skip-hostile]

Good grammars: milliseconds to compile and to fill one row's mask (median, 99th percentile, worst) over random
walks, and how long at most the library held the GIL while compiling. Hostile ones: what became of a process
with 6 GiB and 20 s. The vocabulary is the demo model's, or a byte-level one trained on the sources of Python.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tokenizers

DEMO = Path(__file__).parents[1] / "engine" / "demo" / "model" / "tokenizer.json"
LIBRARIES = ("llguidance", "xgrammar")
WALK, WALKS = 150, 4  # tokens of a random walk; walks of a grammar

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {"$ref": "#/$defs/address"},
        "role": {"enum": ["admin", "user", "guest"]},
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        }
    },
}
_WIDE = {"type": "object", "properties": {f"field_{i}": {"type": ["string", "number"]} for i in range(60)}}
_TREE = {
    "type": "object",
    "properties": {"value": {"type": "number"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}
_LARK = 'start: sum\nsum: product (("+" | "-") product)*\nproduct: atom (("*" | "/") atom)*\n'
_LARK += 'atom: NUMBER | "(" sum ")"\nNUMBER: /[0-9]+/\n'
_EBNF = 'root ::= product (("+" | "-") product)*\nproduct ::= atom (("*" | "/") atom)*\n'
_EBNF += 'atom ::= [0-9]+ | "(" root ")"\n'

# Name: kind, text; a grammar has one text for each library.
GOOD: dict[str, tuple[str, Any]] = {
    "schema, a person": ("json_schema", json.dumps(_PERSON)),
    "schema, 60 optional": ("json_schema", json.dumps(_WIDE)),
    "schema, recursive": ("json_schema", json.dumps(_TREE)),
    "schema, any object": ("json_schema", '{"type": "object"}'),
    "regex, date": ("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}"),
    "regex, words": ("regex", r"([A-Z][a-z]{1,12} ){3,20}[a-z]+\."),
    "regex, 500 choices": ("regex", "|".join(f"choice number {i}" for i in range(500))),
    "grammar, arithmetic": ("grammar", {"llguidance": _LARK, "xgrammar": _EBNF}),
}


def _doubling(rule: str, first: str) -> str:
    rules = "\n".join(f"r{i}{rule} r{i + 1} r{i + 1}" for i in range(60))
    return f'{first}{rule} r0\n{rules}\nr60{rule} "y"\n'


_EMPTY = 'start: s\ns: s s s | s s | "a" | "b" |\n'
HOSTILE: dict[str, tuple[str, Any]] = {
    "regex, 100k brackets": ("regex", "(" * 100_000 + "a" + ")" * 100_000),
    "regex, nested counts": ("regex", "((((a{1,1000}){1,1000}){1,1000}){1,1000})"),
    "regex, 2^100 states": ("regex", "(a|b)*a(a|b){100}"),
    "regex, 1M letters": ("regex", "a" * 1_000_000),
    "schema, 100k deep": ("json_schema", '{"type":"array","items":' * 100_000 + "{}" + "}" * 100_000),
    "schema, is itself": ("json_schema", '{"$ref": "#"}'),
    "schema, 20k optional": ("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(20_000)}})),
    "schema, 1M items": ("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":1000000}'),
    "schema, string 2M": ("json_schema", '{"type":"string","minLength":1000000,"maxLength":2000000}'),
    "schema, multiple of": ("json_schema", '{"type":"integer","multipleOf":99999989}'),
    "schema, 10 MB": ("json_schema", json.dumps({"enum": [f"value {i:09d}" for i in range(450_000)]})),
    "grammar, never ends": ("grammar", {"llguidance": 'start: "a" start', "xgrammar": 'root ::= "a" root'}),
    "grammar, left": (
        "grammar",
        {"llguidance": 'start: start "a" | "b"', "xgrammar": 'root ::= root "a" | "b"'},
    ),
    "grammar, ambiguous": (
        "grammar",
        {
            "llguidance": _EMPTY,
            "xgrammar": _EMPTY.replace("start:", "root ::=").replace("s:", "s ::=") + '""',
        },
    ),
    "grammar, doubling": (
        "grammar",
        {"llguidance": _doubling(":", "start"), "xgrammar": _doubling(" ::=", "root")},
    ),
}


class Llguidance:
    def __init__(self, tokenizer_json: str) -> None:
        import llguidance

        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(tokenizer_json)
        self.num_words = -(-self._tokenizer.vocab_size // 32)

    def compile(self, kind: str, text: str) -> Any:
        matcher = self._library.LLMatcher
        make: dict[str, Callable[[str], str]] = {
            "json_schema": matcher.grammar_from_json_schema,
            "regex": matcher.grammar_from_regex,
            "grammar": matcher.grammar_from_lark,
        }
        made = matcher(self._tokenizer, make[kind](text), log_level=0)
        self._check(made)
        return made

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, matcher: Any, mask: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check(matcher)

    def accept(self, matcher: Any, token_id: int) -> bool:
        accepted: bool = matcher.consume_token(token_id)
        self._check(matcher)
        return accepted and not matcher.is_stopped()

    def _check(self, matcher: Any) -> None:
        if matcher.is_error():
            raise ValueError(matcher.get_error())


class Xgrammar:
    def __init__(self, tokenizer_json: str) -> None:
        # No dependency of ours, so the type checker cannot know it.
        self._library, self._torch = import_module("xgrammar"), import_module("torch")
        backend = tokenizers.Tokenizer.from_str(tokenizer_json)
        vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
        info = self._library.TokenizerInfo(
            [token for token, _ in vocabulary],
            vocab_type=self._library.VocabType.BYTE_LEVEL,
            vocab_size=len(vocabulary),
            stop_token_ids=[0],
        )
        self._compiler = self._library.GrammarCompiler(info, cache_enabled=False)
        self.num_words = -(-len(vocabulary) // 32)

    def compile(self, kind: str, text: str) -> Any:
        if kind == "json_schema":
            return self._compiler.compile_json_schema(text)
        return self._compiler.compile_regex(text) if kind == "regex" else self._compiler.compile_grammar(text)

    def start(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def fill(self, matcher: Any, mask: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        if not matcher.fill_next_token_bitmask(self._torch.from_numpy(mask).view(1, -1)):
            mask.fill(-1)

    def accept(self, matcher: Any, token_id: int) -> bool:
        return bool(matcher.accept_token(token_id)) and not matcher.is_terminated()


def load(library: str, tokenizer_json: str) -> Any:
    return (Llguidance if library == "llguidance" else Xgrammar)(tokenizer_json)


def held_gil(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the longest that another thread could not run meanwhile, in seconds."""
    gaps, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.0005)
            last, gap = time.perf_counter(), time.perf_counter() - last
            gaps.append(gap)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        return work(), max(gaps)
    finally:
        done.set()
        thread.join()


def walk(adapter: Any, compiled: Any, seed: int) -> Iterator[float]:
    """Seconds of each mask of one output of random allowed tokens."""
    rng, matcher = Random(seed), adapter.start(compiled)
    mask = np.zeros(adapter.num_words, np.int32)
    for _ in range(WALK):
        start = time.perf_counter()
        adapter.fill(matcher, mask)
        yield time.perf_counter() - start
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        if not len(allowed) or not adapter.accept(matcher, int(rng.choice(allowed))):
            return


def measure(adapter: Any, kind: str, text: str) -> str:
    start = time.perf_counter()
    compiled, held = held_gil(lambda: adapter.compile(kind, text))
    seconds = time.perf_counter() - start
    fills = np.array([fill for seed in range(WALKS) for fill in walk(adapter, compiled, seed)]) * 1e3
    median, late = np.percentile(fills, [50, 99])
    return (
        f"compile {seconds * 1e3:9.2f} ms (GIL {held * 1e3:6.1f})   "
        f"mask {median:7.3f}  p99 {late:7.3f}  max {fills.max():8.3f} ms   {len(fills)} masks"
    )


def train_vocabulary(size: int, max_chars: int = 60_000_000) -> str:
    """The tokenizer.json of a byte-level BPE vocabulary, from the sources of Python and its packages."""

    def texts() -> Iterator[str]:
        num_chars = 0
        for folder in ("stdlib", "purelib"):
            for path in sorted(Path(sysconfig.get_path(folder)).rglob("*.py")):
                num_chars += len(text := path.read_text(errors="replace")[:200_000])
                yield text
                if num_chars > max_chars:
                    return

    level, decoder = (
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        tokenizers.decoders.ByteLevel(),
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoder
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return str(tokenizer.to_str())


def run_hostile(library: str, name: str) -> str:
    """In a process of its own, because it may be the end of it."""
    command = [sys.executable, "-m", "benchmarks.guided_libraries", "--one", library, name]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "killed after 20 s"
    if done.returncode < 0:
        return f"DIED of signal {-done.returncode} after {time.perf_counter() - start:.1f} s"
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit {done.returncode}"


def try_hostile(library: str, name: str) -> None:
    adapter = load(library, DEMO.read_text())
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    start = time.perf_counter()
    kind, text = _text_of(HOSTILE[name], library)
    try:
        print(measure(adapter, kind, text))
    except Exception as error:
        words = " ".join(str(error).split())[:90]
        print(f"refused after {(time.perf_counter() - start) * 1e3:.1f} ms: {words}")


def _text_of(case: tuple[str, Any], library: str) -> tuple[str, str]:
    kind, text = case
    return kind, text if isinstance(text, str) else text[library]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--train-vocabulary", type=int, metavar="SIZE", help="train one on this machine")
    parser.add_argument("--skip-hostile", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        try_hostile(*options.one)
        return
    size = options.train_vocabulary
    tokenizer_json = train_vocabulary(size) if size else DEMO.read_text()
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            print(f"{library}: not installed, skipped")
            continue
        start = time.perf_counter()
        adapter, held = held_gil(lambda library=library: load(library, tokenizer_json))  # type: ignore[misc]
        print(f"{library}: vocabulary {time.perf_counter() - start:.2f} s (GIL {held:.2f} s)")
        for name, case in GOOD.items():
            print(f"  {name:22s} {measure(adapter, *_text_of(case, library))}")
        for name in () if options.skip_hostile else HOSTILE:
            print(f"  {name:22s} {run_hostile(library, name)}")


if __name__ == "__main__":
    main()
