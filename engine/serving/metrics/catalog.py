"""Every metric that there is."""

from typing import NamedTuple

from engine.serving.metrics import guided, request_specs, scheduling, start, steps, tokens
from engine.serving.metrics.specs import Kind, Spec

# Of the library's collector, which has no words on what to do.
PROCESS: tuple[Spec, ...] = (
    Spec(
        "process_cpu_seconds_total",
        Kind.COUNTER,
        "seconds",
        "CPU time of the server, all threads",
        "A rate near 1 with the GPU idle: Python threads wait for each other; take more processes.",
    ),
    Spec(
        "process_resident_memory_bytes",
        Kind.GAUGE,
        "bytes",
        "Memory of the server on the host",
        "Rising for hours at a steady load: a leak; report it.",
    ),
    Spec("process_virtual_memory_bytes", Kind.GAUGE, "bytes", "Its address space", "Large with a GPU."),
    Spec(
        "process_start_time_seconds",
        Kind.GAUGE,
        "seconds since 1970",
        "When it started",
        "A change: it was restarted.",
    ),
    Spec(
        "process_open_fds",
        Kind.GAUGE,
        "descriptors",
        "Open files and connections",
        "Near process_max_fds: clients will not be able to connect; raise the limit.",
    ),
    Spec("process_max_fds", Kind.GAUGE, "descriptors", "The limit of those", "Below 4096: raise it."),
)


class Section(NamedTuple):
    title: str
    specs: tuple[Spec, ...]


SECTIONS = (
    Section("Load, tokens, KV cache", scheduling.SPECS),
    Section("Tokens as clients get them", tokens.SPECS),
    Section("Requests", request_specs.SPECS),
    Section("Steps", steps.SPECS),
    Section("Guided requests", guided.SPECS),
    Section("The engine and its start", start.SPECS),
    Section("The process", PROCESS),
)


def all_specs() -> tuple[Spec, ...]:
    return tuple(spec for section in SECTIONS for spec in section.specs)
