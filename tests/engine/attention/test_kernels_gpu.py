"""The compiled attention kernels against dense attention, at the sizes of real models.

Compiling takes most of the time: cases share what kernels are compiled for (heads, block size, window, dtype,
powers of two of lone tokens) where that is not what they are about.
"""

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
BATCH = (Row(600), Row(30, 3), Row(0, 70, is_lone=False), Row(300, 130, is_lone=False))
LLAMA = Heads(32, 8, 128)
MOST_LONE = 256  # of random steps, with padding


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda")


@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("window", [None, 1000])
def test_steps(rows: tuple[Row, ...], window: int | None, device: torch.device) -> None:
    case = Case(rows, LLAMA, 16, window, (3, 5))
    check(case, torch.bfloat16, device, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize(
    ("heads", "block_size", "window", "dtype"),
    [
        ((32, 8, 128), 16, 200, torch.float16),
        ((8, 2, 128), 16, 250, torch.float32),
        ((4, 4, 16), 16, None, torch.float32),
        ((14, 2, 20), 1, 200, torch.bfloat16),
        ((32, 1, 32), 48, None, torch.float16),
        ((24, 8, 96), 256, None, torch.bfloat16),
        ((8, 4, 256), 16, 200, torch.bfloat16),
    ],
    ids=str,
)
def test_heads_blocks_and_dtypes(
    heads: tuple[int, int, int],
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    check(Case(BATCH, Heads(*heads), block_size, window), dtype, device, TOLERANCES[dtype])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("heads", "block_size", "window"),
    [(LLAMA, 16, None), (Heads(14, 2, 64), 32, 700), (Heads(6, 6, 80), 64, None)],
    ids=["llama", "window", "padded"],
)
def test_random_steps(
    heads: Heads, block_size: int, window: int | None, seed: int, device: torch.device
) -> None:
    """As many lone tokens as a bucket has, most of them padding."""
    random = torch.Generator().manual_seed(seed)

    def draw(end: int) -> int:
        return int(torch.randint(end, (), generator=random))

    rows = [Row(draw(1 << draw(13)), 1 + draw(2) * draw(9)) for _ in range(1 + draw(28))]
    num_padding = MOST_LONE - sum(row.num_new for row in rows)
    rows += [Row(draw(1 << draw(12)), 1 + draw(1 << draw(10)), is_lone=False) for _ in range(draw(5))]
    case = Case(tuple(rows), heads, block_size, window, (num_padding, draw(9)))
    check(case, torch.bfloat16, device, TOLERANCES[torch.bfloat16], seed)


def test_a_captured_graph_reads_lengths_on_the_device(device: torch.device) -> None:
    """Captured over one batch, replayed over others of the same bucket; and twice the same bits."""
    case = Case(tuple(Row(n) for n in (3000, 5, 700, 0)), LLAMA)
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
