"""The demo: a server in a process of its own, a handful of prompts at once, their streams side by side."""

import asyncio
import statistics
import time
import urllib.request
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.serving.server_process import server_process
from inflight import v1 as pb

PROMPTS = (
    "Count up from 7:",
    "Count down from 42:",
    "Monday, Tuesday",
    "z, y, x",
    "3 6 9 12",
    "12 + 30 =",
    "Ada is 36 years old, lives in London and likes tea.\nJSON:",
    "The brave fox sees the old owl. Who sees the old owl?",
)
MAX_NEW_TOKENS = 160
_SHOWN_LINES = 4


@dataclass(slots=True)
class Stream:
    """What the screen shows of one request."""

    prompt: str
    text: str = ""
    num_tokens: int = 0
    started: float = 0.0
    first_token_seconds: float | None = None
    ended: str = ""

    def add(self, event: pb.GenerateResponse) -> None:
        if self.first_token_seconds is None and event.token_ids:
            self.first_token_seconds = time.perf_counter() - self.started
        self.text += event.text
        self.num_tokens += len(event.token_ids)
        if event.HasField("finish"):
            self.ended = pb.FinishReason.Name(event.finish.reason).removeprefix("FINISH_REASON_").lower()

    def panel(self, width: int) -> Panel:
        lines = Text(self.text).wrap(Console(width=width - 4), width - 4)[-_SHOWN_LINES:]
        shown = Text("\n").join([*lines, *[Text()] * (_SHOWN_LINES - len(lines))])
        title = Text(self.prompt.replace("\n", " "), style="bold cyan")
        title.truncate(width - 8, overflow="ellipsis")
        subtitle = f"{self.num_tokens} tokens, {self.ended or '…'}"
        return Panel(
            shown, title=title, title_align="left", width=width, subtitle=subtitle, subtitle_align="right"
        )


@dataclass(slots=True)
class Outcome:
    """What the summary tells."""

    streams: list[Stream]
    seconds: float = 0.0
    max_kv_usage: float = 0.0
    num_blocks: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def run() -> int:
    """Exit code 0 if every stream ended as it should."""
    console = Console(highlight=False)
    begin = time.perf_counter()
    console.print("starting [bold]inflight serve[/] on the demo model …")
    with server_process() as addresses:
        console.print(f"ready at {addresses.grpc} after {time.perf_counter() - begin:.1f} s\n")
        outcome = asyncio.run(_generate_all(console, addresses.grpc))
        outcome.metrics = _scrape(addresses.metrics)
    console.print()
    console.print(_summary(outcome))
    return 0 if all(stream.ended in ("stop", "length") for stream in outcome.streams) else 1


async def _generate_all(console: Console, address: str) -> Outcome:
    outcome = Outcome([Stream(prompt) for prompt in PROMPTS])
    columns = max(1, min(4, console.width // 36))
    width = console.width // columns - 1

    def screen() -> Columns:
        return Columns([stream.panel(width) for stream in outcome.streams], padding=(0, 1))

    async with pb.Client(address) as client:
        with Live(get_renderable=screen, console=console, refresh_per_second=15):
            begin = time.perf_counter()
            watcher = asyncio.create_task(_watch_load(client, outcome))
            await asyncio.gather(*(_generate(client, stream) for stream in outcome.streams))
            outcome.seconds = time.perf_counter() - begin
            watcher.cancel()
    return outcome


async def _generate(client: pb.Client, stream: Stream) -> None:
    stream.started = time.perf_counter()
    async for event in client.generate(stream.prompt, max_new_tokens=MAX_NEW_TOKENS, token_ids=True):
        stream.add(event)


async def _watch_load(client: pb.Client, outcome: Outcome) -> None:
    while True:
        load = await client.load()
        outcome.max_kv_usage = max(outcome.max_kv_usage, load.kv_usage)
        outcome.num_blocks = load.num_blocks
        await asyncio.sleep(0.02)


def _scrape(address: str) -> dict[str, float]:
    """Samples of the server's metrics, by name."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value) for name, value in (ln.rsplit(" ", 1) for ln in lines if not ln.startswith("#"))
    }


def _summary(outcome: Outcome) -> Table:
    num_tokens = sum(stream.num_tokens for stream in outcome.streams)
    num_steps = outcome.metrics["inflight_engine_steps_total"]
    mean_batch = outcome.metrics["inflight_generation_tokens_total"] / num_steps
    waits = [s.first_token_seconds for s in outcome.streams if s.first_token_seconds is not None]
    first, last = statistics.median(waits), max(waits)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "generated", f"{num_tokens} tokens of {len(outcome.streams)} requests in {outcome.seconds:.2f} s"
    )
    table.add_row("throughput", f"{num_tokens / outcome.seconds:.0f} tokens/s")
    table.add_row("time to first token", f"{first * 1e3:.0f} ms median, {last * 1e3:.0f} ms at most")
    table.add_row("steps", f"{num_steps:.0f}, {mean_batch:.1f} sequences in the mean batch")
    table.add_row("KV cache", f"{outcome.max_kv_usage:.1%} of {outcome.num_blocks} blocks in use at most")
    return table
