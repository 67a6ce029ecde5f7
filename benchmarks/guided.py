"""What grammars cost on a GPU: output tokens/s of 64 rows with and without, in the shape of Llama-3.1-8B.

    python -m benchmarks.guided

Random weights in bf16 and a byte-level vocabulary trained on the sources of Python: what is generated is
noise inside of valid JSON. 64 requests of 128 + 256 tokens; schemas that cannot end sooner. Rounds alternate.
Aim: at most 10 % lost. Exit status 1 if that is missed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_checkpoint import NUM_LAYERS, config_json, write_checkpoint
from benchmarks.gpu_engine import Engine, build_engine
from benchmarks.gpu_options import engine_options
from benchmarks.gpu_requests import make_requests
from benchmarks.gpu_serve import Served, Server
from benchmarks.gpu_tokenizer import synthetic_tokenizer
from engine.model.huggingface import parse_config
from engine.sampling.guided.compiler import GrammarCompiler
from engine.sampling.guided.grammar import Grammar
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import SamplingParams

NUM_ROWS, NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 64, 128, 256
AIM = 0.9
_PERSON = (
    '{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},'
    '"tags":{"type":"array","items":{"type":"string"}},"role":{"enum":["admin","user","guest"]}},'
    '"required":["name","age","tags","role"],"additionalProperties":false}'
)
SPECS = {
    "JSON": GuidedSpec("json_schema", f'{{"type":"array","minItems":300,"items":{_PERSON}}}'),
    "regex": GuidedSpec("regex", "([A-Z]?[a-z]+ [0-9]{0,3}[,;]? ?)*ENDENDENDEND"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--model-dir", type=Path, default=temporary, help="for the weights, 16 GB")
    parser.add_argument("--plan-dir", type=Path, default=temporary / "inflight-plans" / "kept")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.guided needs an NVIDIA GPU; there is none here", file=sys.stderr)
        return 2
    model_dir = arguments.model_dir / f"llama-8b-shape-{arguments.layers}"
    if not (model_dir / "config.json").exists():
        write_checkpoint(model_dir, arguments.layers, torch.device("cuda"))
        torch.cuda.empty_cache()
    vocab_size = parse_config(config_json(arguments.layers), {}).vocab_size
    grammars = compile_grammars(synthetic_tokenizer(vocab_size).to_str(), vocab_size)
    with torch.inference_mode():
        return measure(
            build_engine(engine_options(model_dir, arguments.plan_dir)), grammars, arguments.rounds
        )


def compile_grammars(tokenizer_json: str, vocab_size: int) -> dict[str, Grammar]:
    compiler = GrammarCompiler(tokenizer_json, vocab_size, (vocab_size - 1,))
    try:
        return {name: compiler.compile(spec) for name, spec in SPECS.items()}
    finally:
        compiler.close()


def measure(engine: Engine, grammars: dict[str, Grammar], num_rounds: int) -> int:
    kinds = {"none": None, **grammars}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    times = HostTimes(engine)
    for round_ in range(num_rounds + 1):  # the first compiles
        for name, grammar in kinds.items():
            served = serve(engine, grammar)
            if round_:
                rates[name].append(served.tokens_per_second)
            if round_ == num_rounds:
                steps = [step for step in served.steps if not step.num_chunk_tokens]
                split = {
                    part: statistics.median(getattr(step, f"{part}_seconds") for step in steps) * 1e3
                    for part in ("schedule", "launch", "wait", "update")
                }
                loop = ", ".join(f"{part} {milliseconds:.2f}" for part, milliseconds in split.items())
                print(f"{name}: ms a step: {loop}; of the host for grammars: {times.report()}")
            times.clear()
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    print(f"{torch.cuda.get_device_name()}; {NUM_ROWS} requests of {NUM_PROMPT_TOKENS} + {NUM_NEW_TOKENS}")
    for name, rate in medians.items():
        print(f"grammar: {name:6} {rate:8,.0f} tokens/s   {rate / medians['none']:.3f} of none")
    reached = min(rate / medians["none"] for rate in medians.values())
    print(f"aim: at least {AIM} of none: {'met' if reached >= AIM else 'MISSED'}")
    return 0 if reached >= AIM else 1


class HostTimes:
    """Milliseconds a step that the host spends on grammars, by part: medians over all calls."""

    def __init__(self, engine: Engine) -> None:
        self._seconds: dict[str, list[float]] = {}
        sampling = engine.runner._sampling
        self._wrap(sampling._guided, "take")
        self._wrap(sampling._guided, "fill")
        self._wrap(sampling, "enqueue")

    def report(self) -> str:
        parts = [
            f"{name} {statistics.median(seconds) * 1e3:.2f} (p99 {quantile(seconds, 0.99) * 1e3:.2f})"
            for name, seconds in self._seconds.items()
        ]
        return ", ".join(parts)

    def clear(self) -> None:
        self._seconds.clear()

    def _wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self._seconds.setdefault(name, []).append(time.perf_counter() - begin)
            return result

        setattr(owner, name, timed)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def serve(engine: Engine, grammar: Grammar | None) -> Served:
    sampling = SamplingParams(grammar=grammar, temperature=0.8, seed=1, ignore_eos=True)
    requests = [
        replace(request, sampling=sampling)
        for request in make_requests(engine, NUM_ROWS, NUM_PROMPT_TOKENS, NUM_NEW_TOKENS)
    ]
    served = Server(engine, NUM_ROWS, 1024).serve(requests)
    assert served.num_output_tokens == NUM_ROWS * NUM_NEW_TOKENS, "no grammar let an output end or failed"
    return served


if __name__ == "__main__":
    sys.exit(main())
