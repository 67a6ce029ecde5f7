"""What a start chose, for people."""

from collections.abc import Iterator, Mapping
from itertools import groupby

from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.choices import Choice, Selection
from engine.tensorrt_backend.library import Library


def details(library: Library, selection: Selection) -> Iterator[tuple[str, str]]:
    """StartReport's: the library, and which form computes how many tokens of a step, or rows of its head."""
    yield "library", f"{library.name} {library.version}"
    decode, tokens = selection.routers()
    yield "layers", forms(selection.layers, tokens)
    yield "head", forms(selection.last, decode)


def forms(choices: Mapping[int, Choice], router: Router) -> str:
    """Such as "1 to 16 skinny, 17 to 256 apart, 257 to 2048 fused", as routed."""
    runs, first = [], 1
    sizes = ((size, choices[router.bucket_for(size)].form) for size in sorted(choices))
    for form, run in groupby(sizes, key=lambda pair: pair[1]):
        last = max(size for size, _ in run)
        runs.append(f"{first} to {last} {form}" if last > first else f"{last} {form}")
        first = last + 1
    return ", ".join(runs)
