"""How often the demo model's greedy continuations of held-out prompts are right, by task.

    python -m benchmarks.demo_accuracy

The prompts are of the eighth that training never sees (engine/demo/task.py); every text is checked against
the one right continuation, its end included. Exit status 1 if a task has less than 95 % right.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from engine.demo import MODEL_DIR
from engine.demo.task import Task
from engine.demo.tasks import TASKS

AIM = 0.95


@dataclass(frozen=True, slots=True)
class Completion:
    """finished: the model ended it by itself."""

    text: str
    finished: bool


Generate = Callable[[Sequence[str]], list[Completion]]


def transformers_generate(model_dir: Path, device: str, batch: int, max_new_tokens: int) -> Generate:
    """Greedy decoding by `transformers` in float32: what the engine is held to."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.to(device)

    def complete(prompts: Sequence[str]) -> Iterator[Completion]:
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(device)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        for ids in generated[:, inputs["input_ids"].shape[1] :].tolist():
            finished = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if finished else ids
            yield Completion(tokenizer.decode(ids), finished)

    def generate(prompts: Sequence[str]) -> list[Completion]:
        return [
            done
            for start in range(0, len(prompts), batch)
            for done in complete(prompts[start : start + batch])
        ]

    return generate


def held_out_prompts(task: Task, model_dir: Path, count: int, seed: int) -> list[str]:
    """The same for the same seed."""
    from tokenizers import Tokenizer

    tokenizer, rng = Tokenizer.from_file(str(model_dir / "tokenizer.json")), Random(f"{seed}/{task.name}")
    return [
        task.draw_prompt(rng, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))
        for _ in range(count)
    ]


def measure(task: Task, prompts: list[str], generate: Generate, show_wrong: int) -> float:
    """Prints a task's line of the table; gives its accuracy."""
    begin = time.perf_counter()
    done = generate(prompts)
    seconds = time.perf_counter() - begin
    checked = [
        task.check(prompt, completion.text, finished=completion.finished)
        for prompt, completion in zip(prompts, done, strict=True)
    ]
    ended = sum(completion.finished for completion in done)
    accuracy = sum(checked) / len(checked)
    print(
        f"{task.name:12} {sum(checked):5}/{len(checked)} {accuracy:9.1%} {ended:7} {seconds:9.1f}", flush=True
    )
    wrong = [(prompt, text) for prompt, text, right in zip(prompts, done, checked, strict=True) if not right]
    for prompt, completion in wrong[:show_wrong]:
        print(f"    wrong: …{prompt[-60:]!r} -> {completion.text[:80]!r}, finished: {completion.finished}")
    return accuracy


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="default: the model in the package")
    parser.add_argument("--prompts", type=int, default=200, help="of each task (default: 200)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="default: 64")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--seed", type=int, default=2, help="of the prompts (default: 2)")
    parser.add_argument("--batch", type=int, default=50, help="prompts at once (default: 50)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--show-wrong", type=int, default=2, help="wrong texts shown a task (default: 2)")
    arguments = parser.parse_args()
    generate = transformers_generate(
        arguments.model, arguments.device, arguments.batch, arguments.max_new_tokens
    )
    print(f"{'task':12} {'right':>9} {'accuracy':>9} {'ended':>7} {'seconds':>9}")
    accuracies = []
    for name in arguments.tasks:
        prompts = held_out_prompts(TASKS[name], arguments.model, arguments.prompts, arguments.seed)
        accuracies.append(measure(TASKS[name], prompts, generate, arguments.show_wrong))
    print(f"lowest: {min(accuracies):.1%} (aim: at least {AIM:.0%} of each task)")
    return 0 if min(accuracies) >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
