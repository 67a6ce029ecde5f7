"""The import graph of the packages is the one that CONTRIBUTING.md draws."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("engine", "scheduler", "kvcache", "inflight")
MAY_IMPORT = {
    "kvcache": {"kvcache"},
    "scheduler": {"scheduler", "kvcache"},
    "engine": {"engine", "scheduler", "kvcache", "inflight"},
    "inflight": {"inflight"},
}
# Third-party modules that belong to a few places only: module -> path prefixes that may import it.
CONFINED = {
    "torch": ("engine/", "kvcache/storage.py"),
    "tensorrt": ("engine/tensorrt_backend/library.py",),
    "tensorrt_rtx": ("engine/tensorrt_backend/library.py",),
    "triton": tuple(
        f"engine/{name}/kernels/" for name in ("attention", "blas", "sampling", "skinny", "tensorrt_backend")
    ),
    "cuda": ("engine/tensorrt_backend/",),
    "llguidance": ("engine/sampling/guided/",),
    "asyncio": ("scheduler/loop.py", "engine/serving/", "proto/inflight/"),
    "prometheus_client": ("engine/serving/metrics/exposition.py",),
    "grpc": ("engine/serving/", "proto/inflight/"),
    "opentelemetry": ("engine/serving/tracing",),
    "numpy": ("engine/", "kvcache/storage.py"),
}


class Import(NamedTuple):
    path: str  # of the importing file, from the root of the repository
    module: str
    at_top: bool  # executed when the file is imported, not within a function or under TYPE_CHECKING

    @property
    def root(self) -> str:
        return self.module.split(".")[0]


def _sources() -> Iterator[Path]:
    for package in ("engine", "scheduler", "kvcache", "proto/inflight"):
        yield from (path for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name)


def _imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    shown = str(path.relative_to(ROOT))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(shown, alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown}:{node.lineno}: relative import"
            for alias in node.names:
                yield Import(shown, _target(node.module or "", alias.name), id(node) in top)


def _target(module: str, name: str) -> str:
    """The module that `from module import name` is about: a submodule, or the module itself."""
    submodule = f"{module}.{name}".replace(".", "/")
    return (
        f"{module}.{name}"
        if any((ROOT / root / f"{submodule}.py").exists() for root in ("", "proto"))
        else module
    )


ALL = [imported for path in _sources() for imported in _imports(path)]


def _package(path: str) -> str:
    return path.removeprefix("proto/").split("/")[0]


def test_packages_import_only_what_is_below_them() -> None:
    wrong = [
        imported
        for imported in ALL
        if imported.root in OURS and imported.root not in MAY_IMPORT[_package(imported.path)]
    ]
    assert wrong == []


def test_only_the_command_line_imports_serving() -> None:
    wrong = [
        imported
        for imported in ALL
        if imported.module.startswith("engine.serving") and not imported.path.startswith("engine/serving/")
    ]
    assert wrong == []


@pytest.mark.parametrize("module", CONFINED)
def test_heavy_modules_stay_where_they_belong(module: str) -> None:
    wrong = [
        imported
        for imported in ALL
        if imported.root == module and not imported.path.startswith(CONFINED[module])
    ]
    assert wrong == []


def test_modules_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for imported in ALL:
        if imported.at_top and imported.root in OURS:
            graph.setdefault(_module(imported.path), set()).add(imported.module)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"import cycle: {' -> '.join((*above, module))}"
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*above, module))
            done.add(module)

    for module in list(graph):
        visit(module, ())


def _module(path: str) -> str:
    return path.removeprefix("proto/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_every_third_party_import_is_a_declared_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = " ".join(project["dependencies"]).replace("-", "_")
    provided_by = {"google": "protobuf", "grpc_health": "grpcio_health_checking", "grpc": "grpcio"}
    provided_by |= {"grpc_reflection": "grpcio_reflection"}
    optional = {"tensorrt", "tensorrt_rtx", "triton", "cuda", "opentelemetry"}
    third_party = {imported.root for imported in ALL} - set(sys.stdlib_module_names) - set(OURS)
    missing = {m for m in third_party - optional if provided_by.get(m, m) not in declared}
    assert missing == set()
