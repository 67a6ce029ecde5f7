"""Grammars meant to do harm, in real processes that are really killed."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.demo import MODEL_DIR
from engine.errors import InvalidArgumentError, UnavailableError
from engine.sampling.guided.cache import Compiled, GrammarCache
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.spec import GuidedSpec
from tests.engine.sampling.guided.conftest import MakeCompiler

# A division automaton of a hundred million states, which the library builds whatever its limits say.
ENDLESS = GuidedSpec("json_schema", '{"type": "integer", "multipleOf": 99999989}')
GOOD = GuidedSpec("regex", "[0-9]+")


MANY_OPTIONAL = {
    "type": "object",
    "properties": {f"p{i}": {} for i in range(2000)},
    "additionalProperties": False,
}


def chain(num_rules: int) -> str:
    rules = "\n".join(f'r{i}: r{i + 1} r{i + 1} | "x" |' for i in range(num_rules))
    return f'start: r0\n{rules}\nr{num_rules}: "y"\n'


def doubling(name: str) -> str:
    rules = "\n".join(f"{name}{i}: {name}{i + 1} {name}{i + 1}" for i in range(60))
    return f'start: {name}0\n{rules}\n{name}60: "y"\n'


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (GuidedSpec("regex", "(" * 100_000 + "a" + ")" * 100_000), "nested"),
        (GuidedSpec("regex", "((((a{1,1000}){1,1000}){1,1000}){1,1000})"), "too many expressions"),
        (GuidedSpec("regex", "(?=a)b"), "look-around"),
        (GuidedSpec("regex", r"[^\s\S]"), "nothing can match it"),
        (GuidedSpec("json_schema", "{"), "EOF"),
        (GuidedSpec("json_schema", '"text"'), "object"),
        (GuidedSpec("json_schema", '{"type": "strnig"}'), "strnig"),
        (GuidedSpec("json_schema", '{"$ref": "#"}'), "nothing can match it"),
        (GuidedSpec("json_schema", '{"$ref": "file:///etc/passwd"}'), "does not fetch"),
        (GuidedSpec("json_schema", '{"items":' * 30_000 + "{}" + "}" * 30_000), "recursion limit"),
        (GuidedSpec("json_schema", json.dumps(MANY_OPTIONAL)), "items"),
        (GuidedSpec("grammar", 'start: "a" start'), "Too many items"),
        (GuidedSpec("grammar", "start: missing"), "missing"),
        (GuidedSpec("grammar", "root ::= ("), "not a grammar"),
        (GuidedSpec("grammar", doubling("r")), "Too many items"),
        (GuidedSpec("grammar", doubling("R")), "too big"),
        (GuidedSpec("grammar", "start: " + "(" * 100_000 + '"a"' + ")" * 100_000), "nested"),
        (GuidedSpec("grammar", chain(5000)), "too deeply nested"),  # the end of the process
    ],
)
def test_refused(compiler: GrammarCompiler, spec: GuidedSpec, reason: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=rf"^{spec.field}=.*cannot be compiled: .*{reason}"
    ) as caught:
        compiler.compile(spec)
    assert len(str(caught.value)) < 600
    compiler.compile(GOOD)


def test_too_long(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(timeout_seconds=1.0)
    with pytest.raises(InvalidArgumentError, match="takes longer than 1 s"):
        compiler.compile(ENDLESS)
    assert compiler.worker_pids == []
    compiler.compile(GOOD)


def test_too_much_memory(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(memory_bytes=96 << 20)
    with pytest.raises(InvalidArgumentError, match="needs more than 96 MiB"):
        compiler.compile(GuidedSpec("regex", "a" * 1_000_000))  # 280 MiB
    compiler.compile(GOOD)


def test_others_go_on_meanwhile(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(timeout_seconds=60.0)
    with ThreadPoolExecutor(9) as threads:
        endless = threads.submit(compiler.compile, ENDLESS)
        good = [threads.submit(compiler.compile, GuidedSpec("regex", f"a{{{i}}}")) for i in range(1, 25)]
        for compiling in good:
            compiling.result()
        assert not endless.done()
        compiler.close()
        with pytest.raises(UnavailableError):
            endless.result()


def test_large_grammars_leave_the_cache_for_their_size(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(cache_bytes=4 << 20)
    large = GuidedSpec("regex", "|".join(f"number {i}" for i in range(20_000)))  # some 10 MiB
    assert compiler.compile(GOOD) is compiler.compile(GOOD)
    assert compiler.compile(large) is not compiler.compile(large)


def test_a_killed_worker_is_replaced(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler()
    assert compiler.worker_pids == []  # no grammar, no process
    compiler.compile(GOOD)
    (pid,) = compiler.worker_pids
    os.kill(pid, signal.SIGKILL)
    compiler.compile(GuidedSpec("regex", "another"))
    assert compiler.worker_pids != [pid]
    assert len(compiler.worker_pids) == 1


def test_what_is_cached_needs_no_worker(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler()
    grammar = compiler.compile(GOOD)
    compiler.close()
    assert compiler.worker_pids == []
    assert compiler.compile(GuidedSpec("regex", "[0-9]+")) is grammar
    with pytest.raises(UnavailableError):
        compiler.compile(GuidedSpec("regex", "another"))


def test_threads_share_one_compilation(compiler: GrammarCompiler) -> None:
    """Eight threads ask for it while the first is compiling it."""
    cache, calls, waiting = GrammarCache(2, 100), [], threading.Semaphore(0)
    compiled = Compiled(compiler.compile(GOOD), 10)

    def compile_it(spec: GuidedSpec) -> Compiled:
        for _ in range(8):
            waiting.acquire()
        calls.append(spec)
        return compiled

    def ask() -> object:
        waiting.release()
        return cache.get(GOOD, compile_it)

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask) for _ in range(8)]
        assert {id(future.result()) for future in asked} == {id(compiled.grammar)}
    assert calls == [GOOD]


def test_failures_reach_all_who_wait_and_are_not_kept(compiler: GrammarCompiler) -> None:
    cache, fail = GrammarCache(2, 100), [True]

    def compile_it(spec: GuidedSpec) -> Compiled:
        if fail:
            raise InvalidArgumentError("guided.regex", "x", "no")
        return Compiled(compiler.compile(GOOD), 10)

    with ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(cache.get, GOOD, compile_it) for _ in range(4)]:
            assert isinstance(asked.exception(), InvalidArgumentError)
    fail.clear()
    cache.get(GOOD, compile_it)


@pytest.mark.parametrize(("max_num_grammars", "max_num_bytes"), [(2, 1000), (9, 20)])
def test_the_least_recently_used_goes(
    compiler: GrammarCompiler, max_num_grammars: int, max_num_bytes: int
) -> None:
    cache, grammar = GrammarCache(max_num_grammars, max_num_bytes), compiler.compile(GOOD)
    compiled: list[str] = []

    def compile_it(spec: GuidedSpec) -> Compiled:
        compiled.append(spec.text)
        return Compiled(grammar, 10)

    for text in "abacab":
        cache.get(GuidedSpec("regex", text), compile_it)
    assert compiled == ["a", "b", "c", "b"]


def test_workers_need_no_torch() -> None:
    code = "import sys, engine.sampling.guided.worker; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_workers_end_with_their_parent() -> None:
    """Killed, so that it cannot clean up, while a worker is building what never ends."""
    code = (
        "import sys, threading\n"
        "from engine.sampling.guided.compiler import GrammarCompiler\n"
        "from engine.sampling.guided.spec import GuidedSpec\n"
        "compiler = GrammarCompiler(open(sys.argv[1]).read(), 960, [1], timeout_seconds=1000)\n"
        "compiler.compile(GuidedSpec('regex', 'a'))\n"
        "spec = GuidedSpec('json_schema', sys.argv[2])\n"
        "threading.Thread(target=compiler.compile, args=(spec,), daemon=True).start()\n"
        "print(*compiler.worker_pids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(MODEL_DIR / "tokenizer.json"), ENDLESS.text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended, _, _ = select.select([worker], [], [], 60)
    os.close(worker)
    assert ended
