"""Session on a GPU: shapes, runs, and what it refuses.

The engine: product = x @ weight, for 2 to 8 rows (and, in a second profile, 16).
"""

from typing import Any

import pytest
import torch

from engine.errors import InvalidArgumentError
from engine.runtime import Session, TensorInfo
from engine.tensorrt_backend.contexts import create_runtime, deserialize
from engine.tensorrt_backend.library import Library, load_library

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library()


@pytest.fixture(scope="module")
def plan(library: Library) -> bytes:
    trt = library.module
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (-1, 4))
    weight = network.add_input("weight", trt.float32, (4, 3))
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(x, none, weight, none).get_output(0)
    product.name = "product"
    network.mark_output(product)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for lowest, highest in ((2, 8), (16, 16)):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (lowest, 4), (highest, 4), (highest, 4))
        config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture
def session(plan: bytes) -> Session:
    return Session.from_serialized_engine(plan)


def _tensors(rows: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    x, weight = torch.randn(rows, 4, device="cuda"), torch.randn(4, 3, device="cuda")
    return {"x": x, "weight": weight}, {"product": torch.full((rows, 3), torch.nan, device="cuda")}


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> TensorInfo:
    return TensorInfo("x", dtype, shape)


def test_it_lists_its_tensors(session: Session) -> None:
    assert session.inputs == [_x(-1, 4), TensorInfo("weight", torch.float32, (4, 3))]
    assert session.outputs == [TensorInfo("product", torch.float32, (-1, 3))]
    assert session.context_mem_size >= 0


def test_outputs_shapes_are_inferred(session: Session) -> None:
    (product,) = session.infer_shapes([_x(5, 4), TensorInfo("weight", torch.float32, (4, 3))])
    assert product == TensorInfo("product", torch.float32, (5, 3))
    assert product.numel() == 15
    assert session.infer_shapes([_x(2, 4)]) == [TensorInfo("product", torch.float32, (2, 3))]


def test_a_shape_that_was_never_given_is_asked_for(session: Session) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"x='no shape': the engine takes float32 of shapes \[2, 4\]"
    ):
        session.infer_shapes([])


@pytest.mark.parametrize("as_handle", [True, False])
def test_it_runs_on_a_stream(session: Session, as_handle: bool) -> None:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for rows in (8, 3):
        inputs, outputs = _tensors(rows)
        session.set_shapes(inputs)
        torch.cuda.synchronize()
        assert session.run(inputs, outputs, stream.cuda_stream if as_handle else stream)
        stream.synchronize()
        torch.testing.assert_close(outputs["product"], inputs["x"] @ inputs["weight"], rtol=1e-5, atol=1e-5)


def test_addresses_are_taken_as_they_are(session: Session) -> None:
    inputs, outputs = _tensors(4)
    session.set_shapes({"x": (4, 4)})
    addresses = {name: tensor.data_ptr() for name, tensor in {**inputs, **outputs}.items()}
    torch.cuda.synchronize()
    assert session.run(addresses, {}, torch.cuda.current_stream())
    torch.testing.assert_close(outputs["product"], inputs["x"] @ inputs["weight"], rtol=1e-5, atol=1e-5)


def test_contexts_of_other_profiles_share_the_memory(session: Session) -> None:
    context = session.create_context(profile=1)
    for rows, chosen in ((16, context), (6, None), (16, context)):
        inputs, outputs = _tensors(rows)
        session.set_shapes(inputs, chosen)
        assert session.run(inputs, outputs, torch.cuda.current_stream(), chosen)
        torch.testing.assert_close(outputs["product"], inputs["x"] @ inputs["weight"], rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"\[16, 4\] to \[16, 4\] \(profile 1\)"):
        session.infer_shapes([_x(8, 4)], context)


def test_an_engine_object_can_be_given(plan: bytes, library: Library) -> None:
    runtime = create_runtime(library)
    session = Session.from_engine(deserialize(library, runtime, plan, "test"))
    assert session.infer_shapes([_x(3, 4)]) == [TensorInfo("product", torch.float32, (3, 3))]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (_x(9, 4), r"float32 \[9, 4\]"),
        (_x(1, 4), r"float32 \[1, 4\]"),
        (_x(4, 5), r"float32 \[4, 5\]"),
        (_x(4), r"float32 \[4\]"),
        (_x(4, 4, dtype=torch.float16), r"float16 \[4, 4\]"),
    ],
)
def test_a_wrong_input_is_refused_with_name_dtype_and_range(
    given: TensorInfo, shown: str, session: Session
) -> None:
    limit = r"the engine takes float32 of shapes \[2, 4\] to \[8, 4\] \(profile 0\)"
    with pytest.raises(InvalidArgumentError, match=f"x='{shown}': {limit}"):
        session.infer_shapes([given])
    with pytest.raises(InvalidArgumentError, match=f"x='{shown}': {limit}"):
        session.set_shapes({"x": torch.empty(given.shape, dtype=given.dtype)})
    assert session.infer_shapes([_x(8, 4)])  # and nothing was changed


def test_an_unknown_input_is_refused(session: Session) -> None:
    with pytest.raises(InvalidArgumentError, match=r"y='float32 \[1\]': no input of the engine: x, weight"):
        session.infer_shapes([TensorInfo("y", torch.float32, (1,))])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("x", lambda x: x.half(), r"float16 \[4, 4\] on cuda:0': must be float32 \[4, 4\]"),
        ("x", lambda x: x[:3], r"float32 \[3, 4\] on cuda:0'.*shapes \[2, 4\] to \[8, 4\]"),
        ("x", lambda x: x.T, "not contiguous"),
        ("x", lambda x: x.cpu(), "on cpu'.*on cuda"),
        ("product", lambda x: x.int(), r"int32 \[4, 3\].*the engine puts out float32"),
        ("weight", None, "weight='missing'"),
    ],
)
def test_a_wrong_tensor_is_refused(name: str, wrong: Any, message: str, session: Session) -> None:
    inputs, outputs = _tensors(4)
    session.set_shapes(inputs)
    tensors = inputs if name in inputs else outputs
    if wrong is None:
        del tensors[name]
    else:
        tensors[name] = wrong(tensors[name])
    with pytest.raises(InvalidArgumentError, match=message):
        session.run(inputs, outputs, torch.cuda.current_stream())
