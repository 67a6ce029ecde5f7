"""Plans of every architecture, built without a GPU. What they compute: test_segments_gpu.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.errors import TensorRTError
from engine.tensorrt_backend.library import Library, load_library
from engine.tensorrt_backend.network import NetworkOps
from engine.tensorrt_backend.plans import PlanSpec, build_plan
from engine.tensorrt_backend.segments import (
    TOKENS,
    SegmentForm,
    SegmentKind,
    SegmentSpec,
    TensorSpec,
    bind_weights,
    define,
    segment_spec,
)
from tests.engine.conftest import MODELS
from tests.support.decoders import model_config, random_decoder

BUCKETS = (1, 8)


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt_rtx")


def _new_network(library: Library) -> tuple[Any, Any]:
    trt = library.module
    builder = trt.Builder(library.logger)
    return builder, builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _network(library: Library, spec: SegmentSpec) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs of the segment's network, as the library has them."""
    _builder, network = _new_network(library)
    define(library, network, spec)

    def described(tensor: Any) -> TensorSpec:
        return TensorSpec(tensor.name, library.torch_dtype(tensor.dtype), tuple(tensor.shape))

    inputs = [described(network.get_input(i)) for i in range(network.num_inputs)]
    return inputs, [described(network.get_output(i)) for i in range(network.num_outputs)]


@pytest.mark.parametrize("form", [SegmentForm.FUSED, SegmentForm.APART_MARKED])
@pytest.mark.parametrize("kind", SegmentKind)
@pytest.mark.parametrize("name", MODELS)
def test_networks_have_the_tensors_of_their_spec(
    name: str, kind: SegmentKind, form: SegmentForm, library: Library
) -> None:
    spec = segment_spec(kind, model_config(name), torch.float16, form)
    inputs, outputs = _network(library, spec)
    assert inputs == [*spec.activations, *spec.weights]
    assert outputs == [*spec.outputs, *spec.scratch]


def test_a_middle_segment_takes_the_weights_around_an_attention() -> None:
    config = model_config("llama-biases")
    spec = segment_spec(SegmentKind.MIDDLE, config, torch.bfloat16, SegmentForm.APART)
    assert {tensor.name: tensor.shape for tensor in (*spec.activations, *spec.weights)} == {
        "attended": (TOKENS, 64),
        "residual": (TOKENS, 64),
        "o": (64, 64),
        "o_bias": (64,),
        "post_attention_norm": (64,),
        "gate": (96, 64),
        "up": (96, 64),
        "gate_bias": (96,),
        "up_bias": (96,),
        "down": (64, 96),
        "down_bias": (64,),
        "input_norm": (64,),
        "qkv": (128, 64),
        "qkv_bias": (128,),
    }
    assert [(tensor.name, tensor.shape_of(8)) for tensor in spec.outputs] == [
        ("residual_out", (8, 64)),
        ("qkv_out", (8, 128)),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_plans_are_small_whatever_the_model(name: str, library: Library) -> None:
    config = model_config(name)
    for kind in SegmentKind:
        forms = (SegmentForm.FUSED,) if kind is SegmentKind.FIRST else (SegmentForm.FUSED, SegmentForm.APART)
        for form in forms:
            spec = segment_spec(kind, config, torch.bfloat16, form)
            plan = build_plan(library, PlanSpec(spec, BUCKETS))
            assert 100_000 < len(plan) < 5_000_000
            for tensor in (*spec.activations, *spec.weights, *spec.outputs):
                assert tensor.name.encode() in plan


@pytest.mark.parametrize("form", SegmentForm)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_form_in_the_other_dtypes(dtype: torch.dtype, form: SegmentForm, library: Library) -> None:
    config = model_config("qwen3")
    for kind in (SegmentKind.MIDDLE, SegmentKind.LAST):
        plan = build_plan(library, PlanSpec(segment_spec(kind, config, dtype, form), (4,)))
        assert len(plan) < 5_000_000


def test_a_plan_has_kernels_for_each_bucket(library: Library) -> None:
    spec = segment_spec(SegmentKind.MIDDLE, model_config("llama2"), torch.bfloat16)
    one, four = (len(build_plan(library, PlanSpec(spec, buckets))) for buckets in ((8,), (2, 4, 8, 16)))
    assert 3 * one < four < 5 * one


def test_weights_do_not_grow_a_plan(library: Library) -> None:
    config = replace(model_config("llama2"), hidden_size=1024, intermediate_size=4096)
    spec = segment_spec(SegmentKind.MIDDLE, config, torch.bfloat16)
    num_bytes = sum(2 * torch.Size(tensor.shape).numel() for tensor in spec.weights)
    assert len(build_plan(library, PlanSpec(spec, BUCKETS))) < num_bytes / 5


def test_float32_products_stay_off_the_tensor_cores_where_those_would_round(library: Library) -> None:
    spec = segment_spec(SegmentKind.MIDDLE, model_config("llama2"), torch.float32)
    assert _num_matrix_products(library, spec) == 0
    assert _num_matrix_products(replace(library, has_float32_products=True), spec) == 4
    spec = segment_spec(SegmentKind.MIDDLE, model_config("llama2"), torch.bfloat16)
    assert _num_matrix_products(library, spec) == 4


def _num_matrix_products(library: Library, spec: SegmentSpec) -> int:
    _builder, network = _new_network(library)
    define(library, network, spec)
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    return kinds.count(library.module.LayerType.MATRIX_MULTIPLY)


def test_the_library_says_what_is_wrong(library: Library) -> None:
    _builder, network = _new_network(library)
    ops = NetworkOps(library, network)
    with pytest.raises(TensorRTError, match=r"adding concat to the network: .*addConcatenation"):
        ops.concat([])


def test_a_plan_that_cannot_be_built_says_which(library: Library) -> None:
    spec = segment_spec(SegmentKind.FIRST, model_config("llama2"), torch.bfloat16)
    with pytest.raises(TensorRTError, match=r"building the plan first-bfloat16 .*no optimization"):
        build_plan(library, PlanSpec(spec, ()))


def test_gate_and_up_are_bound_into_one_weight() -> None:
    decoder = random_decoder(model_config("llama-biases"), torch.bfloat16, "cpu")
    layer = decoder.weights.layers[1]
    spec = segment_spec(SegmentKind.MIDDLE, decoder.config, torch.bfloat16, SegmentForm.APART)
    bound = dict(bind_weights(spec, decoder.weights, layer=2))
    assert list(bound) == [tensor.name for tensor in spec.weights]
    assert {name: tuple(tensor.shape) for name, tensor in bound.items()} == {
        tensor.name: tensor.shape for tensor in spec.weights
    }
    assert bound["qkv"].data_ptr() == decoder.weights.layers[2].qkv.data_ptr()
    assert bound["o"].data_ptr() == layer.o.data_ptr()
    assert torch.equal(torch.cat([bound["gate"], bound["up"]]), layer.gate_up)
    assert layer.gate_up_bias is not None
    assert torch.equal(bound["up_bias"], layer.gate_up_bias[96:])


def test_first_and_last_segments_take_the_weights_outside_the_layers() -> None:
    decoder = random_decoder(model_config("llama3.1-tied"), torch.float32, "cpu")
    weights = decoder.weights
    first = dict(
        bind_weights(segment_spec(SegmentKind.FIRST, decoder.config, torch.float32), weights, layer=0)
    )
    last = dict(bind_weights(segment_spec(SegmentKind.LAST, decoder.config, torch.float32), weights, layer=4))
    assert first["embedding"] is last["head"] is weights.embedding
    assert first["qkv"] is weights.layers[0].qkv
    assert last["gate_up"] is weights.layers[3].gate_up
    assert last["final_norm"] is weights.final_norm
