"""The compiled attention kernels against dense attention, at the sizes of real models."""

import pytest
import torch

from tests.engine.attention.kernel_cases import Case, Heads, Row, Step, check

pytestmark = pytest.mark.gpu
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-5}

DECODE = tuple(Row(n) for n in (0, 1, 15, 16, 63, 64, 190, 1000, 4095, 4096))
SHORT_CHUNKS = (*DECODE[:6], Row(700, 7), Row(0, 16), Row(9000, 2))
CHUNKS = tuple(Row(n, m, is_lone=False) for n, m in ((0, 1), (0, 64), (100, 65), (0, 1000), (3000, 513)))
MIXED = (*SHORT_CHUNKS, *CHUNKS)
STEPS = {"decode": DECODE, "short-chunks": SHORT_CHUNKS, "chunks": CHUNKS, "mixed": MIXED}
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda")


@HALVES
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("window", [None, 1000])
def test_steps(rows: tuple[Row, ...], window: int | None, dtype: torch.dtype, device: torch.device) -> None:
    check(Case(rows, Heads(32, 8, 128), 16, window, (3, 5)), dtype, device, TOLERANCES[dtype])


@HALVES
@pytest.mark.parametrize(
    "heads",
    [(4, 4, 16), (14, 2, 20), (32, 1, 32), (14, 2, 64), (6, 6, 80), (24, 8, 96), (8, 4, 256)],
    ids=lambda heads: "x".join(map(str, heads)),
)
def test_heads(heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    rows = (Row(600), Row(30, 3), Row(0, 70, is_lone=False), Row(300, 130, is_lone=False))
    check(Case(rows, Heads(*heads)), dtype, device, TOLERANCES[dtype])


@pytest.mark.parametrize("head_dim", [32, 128])
def test_float32(head_dim: int, device: torch.device) -> None:
    """Exact products: what the models of the tests run in."""
    rows = (Row(600), Row(30, 3), Row(0, 70, is_lone=False), Row(300, 130, is_lone=False))
    case = Case(rows, Heads(8, 2, head_dim), 16, 250)
    check(case, torch.float32, device, TOLERANCES[torch.float32])


@pytest.mark.parametrize("block_size", [1, 48, 64, 256])
def test_block_sizes(block_size: int, device: torch.device) -> None:
    rows = (Row(600), Row(30, 3), Row(0, 70, is_lone=False), Row(300, 130, is_lone=False))
    check(Case(rows, Heads(8, 2, 128), block_size, 200), torch.bfloat16, device, 1e-2)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("heads", "block_size", "window"),
    [(Heads(32, 8, 128), 16, None), (Heads(14, 2, 64), 32, 700), (Heads(6, 6, 80), 64, None)],
    ids=["llama", "window", "padded"],
)
def test_random_steps(
    heads: Heads, block_size: int, window: int | None, seed: int, device: torch.device
) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(end: int) -> int:
        return int(torch.randint(end, (), generator=random))

    rows = [Row(draw(1 << draw(13)), 1 + draw(2) * draw(9)) for _ in range(1 + draw(40))]
    rows += [Row(draw(1 << draw(12)), 1 + draw(1 << draw(10)), is_lone=False) for _ in range(draw(5))]
    case = Case(tuple(rows), heads, block_size, window, (draw(9), draw(9)))
    check(case, torch.bfloat16, device, TOLERANCES[torch.bfloat16], seed)


def test_a_captured_graph_reads_lengths_on_the_device(device: torch.device) -> None:
    """Captured over one batch, replayed over others of the same bucket; and twice the same bits."""
    case = Case(tuple(Row(n) for n in (3000, 5, 700, 0)), Heads(32, 8, 128))
    step = Step(case, torch.bfloat16, device, 5)
    group = step.group()
    keys, values = step.pool(with_new=False)
    rows, positions = step.rows.clone().fill_(-1), step.positions.clone().fill_(-1)
    qkv, out = step.qkv.clone(), torch.empty_like(step.qkv[:, : 32 * 128])
    group.begin(rows, positions, None, 4).attend(qkv, keys, values, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        group.begin(rows, positions, None, 4).attend(qkv, keys, values, out)
    reference, first = step.dense(), None
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]):
        rows.copy_(step.rows[order])
        positions.copy_(step.positions[order])
        qkv.copy_(step.qkv[order])
        graph.replay()
        error = (out.float() - reference[order]).norm() / reference.norm()
        assert error < TOLERANCES[torch.bfloat16]
        if order == [0, 1, 2, 3]:
            first = out.clone() if first is None else first
            assert torch.equal(out, first)
