"""512 requests of 512 + 256 tokens at once: output tokens/s, greedy and sampled, by token budget."""

import random
from dataclasses import dataclass
from statistics import median

from benchmarks import gpu_peer as peer
from benchmarks.gpu_engine import Engine
from benchmarks.gpu_options import MAX_NUM_SEQS, TOKEN_BUDGET
from benchmarks.gpu_report import Aim, Report
from benchmarks.gpu_rows import GREEDY
from benchmarks.gpu_serve import Served, Server
from engine.sampling.params import SamplingParams
from scheduler.request import Request

NUM_REQUESTS = 512
NUM_PROMPT_TOKENS = 512
NUM_NEW_TOKENS = 256
_NUM_WARMUP_TOKENS = 64
BUDGETS = (1024, 2048)
_HEADER = (
    *("sampling", "rows", "budget", "prefix cache", "s", "tokens/s", "of peer", "steps", "mixed"),
    *("ms decode", "preempted"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    max_num_seqs: int
    budget: int
    prefix_caching: bool = False


def make_requests(
    engine: Engine, count: int, num_prompt_tokens: int, num_new_tokens: int, *, sampled: bool = False
) -> list[Request]:
    """Random prompts, the same every time."""
    rng, vocabulary = random.Random(count), range(engine.model.config.vocab_size)
    return [
        Request(
            str(i),
            rng.choices(vocabulary, k=num_prompt_tokens),
            num_new_tokens,
            _sampling(i, sampled=sampled),
        )
        for i in range(count)
    ]


def measure_requests(engine: Engine, report: Report) -> None:
    report.line(f"{NUM_REQUESTS} requests of {NUM_PROMPT_TOKENS} + {NUM_NEW_TOKENS} tokens. rows: at once")
    report.line(f"peer: {peer.NAME}, {peer.GREEDY_TOKENS_PER_SECOND:,.0f} tokens/s greedy,")
    report.line(f"{peer.SAMPLED_TOKENS_PER_SECOND:,.0f} sampled (temperature 0.8, top-p 0.95, top-k 50)")
    budgets = [budget for budget in BUDGETS if budget <= engine.routed.tokens.largest]
    warm_up(engine)
    found: dict[Setting, Served] = {}

    def run(setting: Setting) -> None:
        served = None if report.is_late else report.attempt(f"{setting}", lambda: _run(engine, setting))
        if served is not None:
            found[setting] = served

    for budget in budgets:
        run(Setting("greedy", MAX_NUM_SEQS, budget))
    best = max(found, key=lambda setting: found[setting].tokens_per_second)
    for name, rows, caching in (("sampled", MAX_NUM_SEQS, False), ("greedy again", MAX_NUM_SEQS, False)):
        run(Setting(name, rows, best.budget, caching))
    run(Setting("greedy", MAX_NUM_SEQS // 2, best.budget))
    report.table(_HEADER, [_cells(setting, served) for setting, served in found.items()])
    _set_aims(found, report)


def warm_up(engine: Engine) -> None:
    """Compiles what steps lack that have chunks beside any number of decode rows."""
    requests = make_requests(engine, MAX_NUM_SEQS, _NUM_WARMUP_TOKENS, _NUM_WARMUP_TOKENS)
    Server(engine, MAX_NUM_SEQS, MAX_NUM_SEQS + _NUM_WARMUP_TOKENS).serve(requests)


def _sampling(index: int, *, sampled: bool) -> SamplingParams:
    if not sampled:
        return GREEDY
    return SamplingParams(temperature=0.8, top_p=0.95, top_k=50, seed=index, ignore_eos=True)


def _run(engine: Engine, setting: Setting) -> Served:
    requests = make_requests(
        engine, NUM_REQUESTS, NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, sampled=setting.name == "sampled"
    )
    server = Server(engine, setting.max_num_seqs, setting.budget, prefix_caching=setting.prefix_caching)
    served = server.serve(requests)
    assert served.num_output_tokens == NUM_REQUESTS * NUM_NEW_TOKENS, "every token asked for has come"
    return served


def _cells(setting: Setting, served: Served) -> list[str]:
    mixed = [step for step in served.steps if step.num_chunk_tokens]
    decodes = [
        step.schedule_seconds + step.launch_seconds + step.wait_seconds + step.update_seconds
        for step in served.steps
        if not step.num_chunk_tokens
    ]
    is_sampled = setting.name == "sampled"
    beside = peer.SAMPLED_TOKENS_PER_SECOND if is_sampled else peer.GREEDY_TOKENS_PER_SECOND
    return [
        *(setting.name, f"{setting.max_num_seqs}", f"{setting.budget}"),
        *("on" if setting.prefix_caching else "off", f"{served.seconds:.2f}"),
        *(f"{served.tokens_per_second:,.0f}", f"{served.tokens_per_second / beside:.2f}"),
        *(f"{len(served.steps)}", f"{len(mixed)}"),
        *(f"{median(decodes) * 1000:.2f}" if decodes else "-", f"{served.num_preemptions}"),
    ]


def _set_aims(found: dict[Setting, Served], report: Report) -> None:
    rates: dict[str, float] = {}
    for setting, served in found.items():
        rates[setting.name] = max(rates.get(setting.name, 0.0), served.tokens_per_second)
    at_default = [
        served.tokens_per_second
        for setting, served in found.items()
        if setting == Setting("greedy", MAX_NUM_SEQS, TOKEN_BUDGET)
    ]
    for name, rate in (("best budget", rates["greedy"]), *(("default budget", x) for x in at_default)):
        report.aims.append(
            Aim(f"512 requests, {name}", rate, peer.AIM_TOKENS_PER_SECOND, "tokens/s", at_most=False)
        )
    if "sampled" in rates and "greedy again" in rates:
        cost = 1 - rates["sampled"] / rates["greedy again"]
        report.aims.append(
            Aim("512 requests, cost of sampling", 100 * cost, 100 * peer.AIM_SAMPLING_COST, "%")
        )
