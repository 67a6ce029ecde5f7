"""The committed stubs are what generation.proto says, and the API is safe to grow."""

import importlib.util
import itertools
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from inflight import v1

PROTO = Path(__file__).parents[2] / "proto"
STUBS = sorted(
    path.relative_to(PROTO) for path in PROTO.rglob("*_pb2*.py*") if "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("generate", PROTO / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    directory = tmp_path_factory.mktemp("stubs")
    module.generate(directory)
    return directory


def test_there_are_stubs_for_messages_and_service_with_types() -> None:
    names = {path.name.removeprefix("generation_") for path in STUBS}
    assert names == {"pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi"}


@pytest.mark.parametrize("stub", STUBS, ids=str)
def test_committed_stub_is_what_the_generator_writes(stub: Path, generated: Path) -> None:
    assert (PROTO / stub).read_bytes() == (generated / stub).read_bytes(), "run `make proto`"


def test_nothing_but_stubs_is_generated(generated: Path) -> None:
    assert sorted(path.relative_to(generated) for path in generated.rglob("*") if path.is_file()) == STUBS


def test_every_field_and_method_is_commented() -> None:
    lines = (PROTO / "inflight/v1/generation.proto").read_text().splitlines()
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r"\s+(rpc |.* = \d+;)", line) and not above.lstrip().startswith("//")
    ]
    assert bare == []


def test_what_may_be_left_out_can_be_told_from_zero() -> None:
    assert v1.GenerateRequest.DESCRIPTOR.fields_by_name["n"].has_presence
    for name in ("temperature", "top_k", "top_p", "min_p", "seed"):
        assert v1.Sampling.DESCRIPTOR.fields_by_name[name].has_presence
    assert v1.Stopping.DESCRIPTOR.fields_by_name["max_new_tokens"].has_presence
    assert v1.Output.DESCRIPTOR.fields_by_name["text"].has_presence


def test_zero_of_the_finish_reasons_means_nothing() -> None:
    assert v1.FinishReason.keys()[0] == "FINISH_REASON_UNSPECIFIED"


def test_token_ids_travel_packed() -> None:
    field = v1.GenerateResponse.DESCRIPTOR.fields_by_name["token_ids"]
    assert field.type == FieldDescriptor.TYPE_UINT32
    one = len(v1.GenerateResponse(token_ids=[1]).SerializeToString())
    assert len(v1.GenerateResponse(token_ids=[1] * 100).SerializeToString()) == one + 99
