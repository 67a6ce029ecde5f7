"""What people get to see of the choices."""

from engine.tensorrt_backend.choices import Choice, Selection
from engine.tensorrt_backend.library import load_library
from engine.tensorrt_backend.summary import details


def choice(form: str, microseconds: float) -> Choice:
    return Choice(form, microseconds, {})


def test_sizes_that_are_computed_alike_are_told_together_as_they_are_routed() -> None:
    layers = {
        1: choice("skinny", 1.0),
        8: choice("skinny", 2.0),
        32: choice("apart", 9.0),  # slower than the next larger one
        64: choice("fused", 5.0),
        256: choice("torch", 7.0),
    }
    head = {1: choice("fused", 1.0), 8: choice("fused", 1.0), 32: choice("apart", 1.0)}
    library = load_library("tensorrt_rtx")
    assert list(details(library, Selection(layers, head))) == [
        ("library", f"tensorrt_rtx {library.version}"),
        ("layers", "1 to 8 skinny, 9 to 64 fused, 65 to 256 torch"),
        ("head", "1 to 8 fused, 9 to 32 apart"),
    ]


def test_a_bucket_of_one_size() -> None:
    selection = Selection({1: choice("apart", 1.0), 2: choice("fused", 2.0)}, {1: choice("fused", 1.0)})
    assert dict(details(load_library("tensorrt_rtx"), selection))["layers"] == "1 apart, 2 fused"
