"""The wheel, installed into an environment of its own, gives a working command."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Without isolation: the build backend is a development dependency, so no network is needed here.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("inflight_engine-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the wheel is installed; its dependencies are borrowed, by path, from the running environment."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def _run(bin_dir: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(bin_dir / "inflight"), *arguments], check=True, capture_output=True, text=True, cwd=bin_dir
    )
    return done.stdout


def test_wheel_holds_the_packages_the_model_and_the_protos_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} - {"engine", "scheduler", "kvcache", "inflight"} == {
        f"{wheel.name.split('-py3')[0]}.dist-info"
    }
    for expected in (
        "engine/demo/model/model.safetensors",
        "engine/demo/model/tokenizer.json",
        "inflight/v1/generation.proto",
        "inflight/v1/generation_pb2.pyi",
        "inflight/py.typed",
        "engine/py.typed",
    ):
        assert expected in names


def test_the_installed_command_runs_from_its_own_files(bin_dir: Path) -> None:
    assert "serve" in _run(bin_dir, "--help")
    code = "import engine, inflight.v1, json; print(json.dumps([engine.__path__[0], inflight.v1.__file__]))"
    done = subprocess.run(
        [str(bin_dir / "python"), "-c", code], check=True, capture_output=True, text=True, cwd=bin_dir
    )
    assert all(Path(path).is_relative_to(bin_dir.parent) for path in json.loads(done.stdout))


def test_the_installed_demo_serves_and_exits_zero(bin_dir: Path) -> None:
    assert "tokens/s" in _run(bin_dir, "demo")
