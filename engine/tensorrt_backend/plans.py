"""Builds plans: serialized TensorRT engines of segments, with one optimization profile a bucket."""

from dataclasses import dataclass
from typing import Any

from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.segments import SegmentSpec, define


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """A segment and the numbers of tokens it is built for, ascending: profile i is of buckets[i].

    Contexts of the first bucket are made without Python's lock; those of the others hold it while their
    kernels are compiled.
    """

    segment: SegmentSpec
    buckets: tuple[int, ...]


def build_plan(library: Library, spec: PlanSpec) -> bytes:
    """The plan, a few MB: weights are no part of it. About a second; needs a GPU unless the library can
    do without, and lets other threads run.

    A profile has min = opt = max, for kernels of a static shape are up to twice as fast. Raises
    TensorRTError.
    """
    trt = library.module
    builder = _builder(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    library.check(network, "creating a network")
    define(library, network, spec.segment)
    config = _config(library, builder)
    for bucket in spec.buckets:
        config.add_optimization_profile(_profile(builder, spec.segment, bucket))
    what = f"building the plan {spec.segment.name} for {', '.join(map(str, spec.buckets))} tokens"
    return bytes(library.check(builder.build_serialized_network(network, config), what))


def _builder(library: Library) -> Any:
    try:
        builder = library.module.Builder(library.logger)
    except (TypeError, RuntimeError) as error:
        raise library.failure(f"starting the builder of {library.name} ({error})") from error
    library.errors.clear()  # without a GPU it complains, and builds all the same
    return builder


def _config(library: Library, builder: Any) -> Any:
    config = builder.create_builder_config()
    flags = library.module.BuilderFlag
    config.clear_flag(flags.TF32)  # float32 means float32
    config.max_aux_streams = 0  # work on other streams could not be captured in our graph
    if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
        # Only tensorrt_rtx has it: else a plan may allocate, which no capture allows.
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    return config


def _profile(builder: Any, segment: SegmentSpec, bucket: int) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in segment.activations:
        shape = tensor.shape_of(bucket)
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile
