"""CUDA graphs: a step padded to a graph's size gives the numbers of the step alone, and padding leaves no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.kernels.ops import StepShape
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.graphs import graph_shape, usual_shapes  # isort: skip  (gpu_cases chooses the interpreter)
from tests.kernels.gpu_steps import BLOCKS_EACH, LARGEST, SPEC, Setup, Spans, made  # isort: skip

# Attention leaves rows of no sequence as the memory was, so numpy meets anything there.
UNDEFINED_ROWS = (
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:invalid value:RuntimeWarning",
)
pytestmark = [pytest.mark.filterwarnings(one) for one in (*INTERPRETER_WARNINGS, *UNDEFINED_ROWS)]


@pytest.fixture(params=[False, True], ids=["bf16", "fp8"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return made(torch.bfloat16, request.param)


def decodes(size: int, turn: int) -> Spans:
    return [(1, (37 * turn + 61 * seq) % 300 + 1) for seq in range(size)]


# Chunks beside decodes, a chunk alone, a chunk that samples nothing, drafts to verify.
MIXES: list[tuple[Spans, int | None]] = [
    ([(1, 40), (23, 23), (1, 300), (9, 150)], None),
    ([(128, 128)], None),
    ([(70, 200)], 0),
    ([(1, 17)] * 9 + [(60, 300)], None),
    ([(5, 90), (5, 31), (3, 3), (5, 250)], 18),
]


@torch.inference_mode()
@pytest.mark.parametrize(("spans", "num_rows"), MIXES)
def test_a_padded_step_gives_the_numbers_of_the_step(spans: Spans, num_rows: int | None) -> None:
    _, buffers, forward = made(torch.float32, False)
    shape = buffers.fill(spans, 3, num_rows)
    expected = forward(shape)
    before = [cache.keys.clone() for cache in buffers.caches]
    padded = graph_shape(shape, LARGEST)
    assert padded is not None
    assert padded.num_tokens > shape.num_tokens or padded.num_seqs > shape.num_seqs
    got = forward(padded)[: shape.num_rows]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for cache, old in zip(buffers.caches, before, strict=True):
        torch.testing.assert_close(cache.keys, old, atol=1e-4, rtol=1e-4)


def test_the_shape_of_a_graph_holds_the_step() -> None:
    largest = StepShape(4096, 100, 140, 4096)
    for tokens, seqs, rows, longest in [
        (1, 1, 1, 1), (100, 100, 100, 1), (7, 7, 3, 1), (17, 16, 16, 2), (60, 12, 60, 5), (2048, 1, 0, 2048),
    ]:  # fmt: skip
        padded = graph_shape(StepShape(tokens, seqs, rows, longest), largest)
        assert padded is not None
        assert padded.num_tokens >= tokens
        assert padded.num_seqs >= seqs
        assert padded.num_rows >= rows
        assert padded.max_query_len >= longest
        # Kernels take as many tokens as sequences for a batch of decodes.
        assert (padded.num_tokens == padded.num_seqs) == (tokens == seqs == rows)
    # One sequence and its drafts: no more rows than it can bring, however many tokens pad them.
    drafts = graph_shape(StepShape(7, 1, 7, 7), StepShape(2048, 1, 7, 2048))
    assert drafts == StepShape(16, 1, 7, 8)
    for too_large in (StepShape(2049, 1, 1, 2049), StepShape(150, 100, 150, 2)):
        assert graph_shape(too_large, largest) is None
    assert graph_shape(StepShape(60, 1, 1, 60), StepShape(60, 4, 4, 60)) is None


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
@pytest.mark.parametrize("is_float8", [False, True], ids=["bf16", "fp8"])
def test_graphs_equal_eager_steps(is_float8: bool) -> None:
    ops, buffers, forward = made(torch.bfloat16, is_float8)
    recording = ops.record(forward, LARGEST)
    assert recording is not None
    steps = [
        (decodes(size, turn), None) for turn, size in enumerate([1, 5, 5, 3, 16, 6, 7, 5, 16, 1])
    ]
    met: list[StepShape] = []
    for turn, (spans, num_rows) in enumerate([*steps, *MIXES, *MIXES, *MIXES, *steps]):
        shape = buffers.fill(spans, turn, num_rows)
        padded = graph_shape(shape, LARGEST)
        assert padded is not None
        met.append(padded)
        got = recording.replay(shape).clone()
        assert got.shape == (shape.num_rows, 512)
        assert torch.isfinite(got).all()
        # cuBLAS may choose another kernel in a capture, and a float8 code next to another is a 16th away.
        near = 1e-1 if is_float8 else 3e-2
        torch.testing.assert_close(got, forward(padded)[: shape.num_rows], atol=near, rtol=near)
        if not is_float8:  # another number of rows has another grain of rounding there
            torch.testing.assert_close(got, forward(shape), atol=3e-2, rtol=3e-2)
    # A size of decodes is captured when it is first met, others when they are met again.
    runs = sum(1 if one.max_query_len == 1 else 2 for one in set(met))
    assert recording.num_replays == len(met) - runs


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
@pytest.mark.parametrize("is_float8", [False, True], ids=["bf16", "fp8"])
def test_chained_kernels_give_the_bits_of_one_after_the_other(is_float8: bool) -> None:
    """Of a layer wide enough for the kernels of one row; a kernel that did not wait would read what is half written."""
    wide = dataclasses.replace(SPEC, hidden_size=1024, intermediate_size=4096, num_heads=16)
    ops, buffers, forward = made(torch.bfloat16, is_float8, wide)
    shape = buffers.fill([(1, 300)], 1)
    assert ops.linears.is_chained
    recording = ops.record(forward, LARGEST)
    assert recording is not None
    ops.linears.is_chained = False
    expected = forward(shape)
    ops.linears.is_chained = True
    assert forward(shape).equal(expected)
    for _ in range(200):
        assert recording.replay(shape).equal(expected)


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
def test_padding_rows_write_nothing(setup: Setup) -> None:
    ops, buffers, forward = setup
    recording = ops.record(forward, LARGEST)
    assert recording is not None
    before = [dataclasses.replace(one, keys=one.keys.clone()) for one in buffers.caches]
    for turn in range(3):
        recording.replay(buffers.fill([(1, 7)] * 5, turn))
        recording.replay(buffers.fill([(1, 7)] * 4 + [(3, 7)], turn))
    for cache, old in zip(buffers.caches, before, strict=True):
        changed = (cache.keys != old.keys).any(dim=(1, 3)).nonzero()
        expected = {(1 + seq * BLOCKS_EACH, 6) for seq in range(5)}
        expected |= {(1 + 4 * BLOCKS_EACH, place) for place in (4, 5)}
        assert {(int(block), int(entry)) for block, entry in changed} == expected


def test_the_usual_graphs_serve_what_drafts_nothing() -> None:
    for largest in (StepShape(2048, 100, 100, 2048), StepShape(600, 300, 300, 600), LARGEST):
        usual = usual_shapes(largest)
        assert len(set(usual)) == len(usual)
        most = min(largest.num_tokens, largest.num_seqs, largest.num_rows)
        for size in range(1, most + 1):
            assert graph_shape(StepShape(size, size, size, 1), largest) in usual
        for seqs in range(1, most + 1, 7):
            for chunk in (2, 3, 7, 16, *range(17, largest.num_tokens - seqs, 97)):
                padded = graph_shape(StepShape(seqs - 1 + chunk, seqs, seqs, chunk), largest)
                assert padded is None or padded in usual


@torch.inference_mode()
@pytest.mark.parametrize("shape", [StepShape(5, 5, 5, 1), StepShape(64, 16, 16, 64)])
def test_padding_alone_may_be_recorded_over(shape: StepShape) -> None:
    _, buffers, forward = made(torch.float32, False)
    buffers.fill([], 0)
    before = [cache.keys.clone() for cache in buffers.caches]
    assert forward(shape).shape == (shape.num_rows, SPEC.vocab_size)
    assert all(torch.equal(cache.keys, old) for cache, old in zip(buffers.caches, before, strict=True))  # fmt: skip


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
@pytest.mark.parametrize("is_float8", [False, True], ids=["bf16", "fp8"])
def test_graphs_recorded_ahead_serve_every_step(is_float8: bool) -> None:
    ops, buffers, forward = made(torch.bfloat16, is_float8)
    recording = ops.record(forward, LARGEST)
    assert recording is not None
    rounds = 1
    buffers.fill([], 0)
    while recording.record_ahead():
        rounds += 1
    assert rounds == len(usual_shapes(LARGEST))
    steps = [(decodes(size, size), None) for size in (1, 5, 16, 3)] + [MIXES[0], MIXES[1]]
    near = 1e-1 if is_float8 else 3e-2
    for number, (spans, num_rows) in enumerate(steps):
        shape = buffers.fill(spans, number, num_rows)
        padded = graph_shape(shape, LARGEST)
        assert padded is not None
        got = recording.replay(shape).clone()
        assert recording.num_replays == number + 1
        expected = forward(padded)[: shape.num_rows]
        torch.testing.assert_close(got, expected, atol=near, rtol=near)
