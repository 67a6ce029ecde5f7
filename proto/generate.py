"""Generate the Python stubs beside each .proto file: `python proto/generate.py [OUTPUT_DIR]`.

The generators are pinned in pyproject.toml ([dev]). grpcio-tools is an old one on purpose: what it generates
needs its own version of grpcio and protobuf or a later one, so the oldest reaches furthest. The .pyi files
are mypy-protobuf's: they type messages, client and servicer, and carry the comments of the .proto file.
"""

import sys
from importlib import resources
from pathlib import Path
from shutil import which

from grpc_tools import protoc  # type: ignore[import-untyped]

SOURCE_ROOT = Path(__file__).resolve().parent


def generate(output_dir: Path) -> None:
    """Write the stubs of every .proto file below this directory to the same places below `output_dir`."""
    sources = sorted(str(path.relative_to(SOURCE_ROOT)) for path in SOURCE_ROOT.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={SOURCE_ROOT}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        *(f"--plugin={_plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *(f"--{kind}_out={output_dir}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{output_dir}" for kind in ("mypy", "mypy_grpc")),
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def _plugin(name: str) -> str:
    """name=path of a protoc plugin installed beside this interpreter."""
    path = which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(f"{name} not found beside {sys.executable}: pip install '.[dev]'")
    return f"{name}={path}"


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE_ROOT)
