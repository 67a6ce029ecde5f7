"""Names, and plugins that bring them."""

import json
import sys
from importlib.metadata import DistributionFinder, PathDistribution
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, InvalidArgumentError
from engine.sampling.custom import Kind, Registry, build_registry
from engine.sampling.params import NamedSpec, SamplingParams
from tests.engine.sampling.custom.support import (
    VOCAB,
    Affine,
    BatchedAffine,
    BatchedMultiple,
    ClassicAffine,
    make_registry,
    spec,
)

PLUGIN = """
from engine.sampling.custom import LogitsProcessor

class Halve(LogitsProcessor):
    '''Halves everything.'''

    def __call__(self, step, input_ids, scores):
        return scores / 2

def register(registry):
    registry.add_logits_processor("{name}", Halve)
"""


def test_what_is_built_in_is_described() -> None:
    registry = build_registry()
    names = [each.name for kind in Kind for each in registry.describe(kind)]
    assert names == ["end_bias", "suppress_until", "repetition", "token_sequences"]
    for kind in Kind:
        for each in registry.describe(kind):
            assert len(each.text) > 50
            assert json.loads(each.schema)["additionalProperties"] is False


def test_a_class_without_words_does_not_tell_its_base_class() -> None:
    assert {each.name: each.text for each in make_registry().describe(Kind.PROCESSOR)}["classic"] == ""


def test_requests_are_checked() -> None:
    registry = make_registry()
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"logits_processors": (spec("classic"), spec("clasic"))},
            "logits_processors[1].name='clasic': no logits processor of this name; there is batched, classic",
        ),
        (
            {"logits_processors": (spec("classic"), spec("classic", scale=9))},
            "logits_processors[1].parameters.scale=9: must be at most 8",
        ),
        (
            {"logits_processors": (spec("batched"), spec("batched"))},
            "logits_processors[1].name='batched': is named twice",
        ),
        ({"stopping_criteria": (spec("batched"),)}, "stopping_criteria[0].parameters.of=None: must be given"),
        (
            {"stopping_criteria": (spec("token_sequences", sequences=[[1, VOCAB]]),)},
            f"stopping_criteria[0].parameters.sequences[0][1]={VOCAB}: must be in [0, {VOCAB})",
        ),
        (
            {"logits_processors": (NamedSpec("classic", [1]),)},  # type: ignore[arg-type]
            "logits_processors[0].parameters=[1]: must be an object",
        ),
    ]
    for asked, message in wrong:
        with pytest.raises(InvalidArgumentError) as raised:
            registry.check(SamplingParams(**asked), VOCAB)
        assert str(raised.value).startswith(message)
    right = SamplingParams(logits_processors=(spec("classic"), spec("classic"), spec("batched", scale=2)))
    registry.check(right, VOCAB)


def test_what_cannot_be_registered() -> None:
    registry = make_registry()
    with pytest.raises(ConfigError, match=r"'classic' is there twice: .*ClassicAffine and .*BatchedAffine"):
        registry.add_logits_processor("classic", BatchedAffine)
    with pytest.raises(ConfigError, match="must be 1 to 64 letters"):
        registry.add_logits_processor("a name", ClassicAffine)
    with pytest.raises(ConfigError, match="BatchedMultiple is no logits processor"):
        registry.add_logits_processor("other", BatchedMultiple)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no class and no function"):
        registry.add_stopping_criterion("other", 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a frozen dataclass"):
        registry.add_logits_processor("other", ClassicAffine, parameters=dict)


def test_a_function_can_make_them() -> None:
    registry = Registry()
    registry.add_logits_processor("made", lambda parameters: ClassicAffine(parameters), Affine)
    assert "scale" in registry.describe(Kind.PROCESSOR)[0].schema


def test_plugins_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "by_path.py").write_text(PLUGIN.format(name="by_path"))
    (tmp_path / "by_name.py").write_text(PLUGIN.format(name="by_name"))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = build_registry((str(tmp_path / "by_path.py"), "by_name"))
    described = {each.name: each.text for each in registry.describe(Kind.PROCESSOR)}
    assert described["by_path"] == described["by_name"] == "Halves everything."
    for module in ("by_name", "inflight_plugin_by_path"):
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module_at_all", "cannot be imported: ModuleNotFoundError: No module named 'no_such"),
        ("def register(registry", "cannot be imported: SyntaxError"),
        ("x = 1", r"has no function register\(registry\)"),
        ("def register(registry): 1 / 0", r"register\(\) failed: ZeroDivisionError"),
        (PLUGIN.format(name="end_bias"), "'end_bias' is there twice"),
    ],
)
def test_plugins_that_fail(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        build_registry((str(path),))
    sys.modules.pop("inflight_plugin_bad", None)
    assert str(raised.value).startswith(f"plugin {str(path)!r}: ")


def test_plugins_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        build_registry(("no_such_module_at_all",))
    with pytest.raises(ConfigError, match="cannot be imported: FileNotFoundError"):
        build_registry((str(tmp_path / "none.py"),))


class _Announcing(DistributionFinder):
    """An installed package with entry points."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(self, context: object = None) -> list[PathDistribution]:
        return [PathDistribution(self._path)]


def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry_points: str) -> None:
    metadata = tmp_path / "package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Announcing(metadata)])


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(
        tmp_path,
        monkeypatch,
        "[inflight.logits_processors]\nannounced = tests.engine.sampling.custom.support:ClassicAffine\n"
        "[inflight.stopping_criteria]\nalso = tests.engine.sampling.custom.support:BatchedMultiple\n",
    )
    registry = build_registry()
    registry.check(
        SamplingParams(
            logits_processors=(spec("announced", scale=2),), stopping_criteria=(spec("also", of=3),)
        ),
        VOCAB,
    )


def test_an_entry_point_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, monkeypatch, "[inflight.stopping_criteria]\nlost = no_such_module_at_all:Thing\n")
    with pytest.raises(ConfigError, match=r"entry point 'lost' of inflight.stopping_criteria, no_such"):
        build_registry()
