"""Linear layers, embeddings and row operations in C++: against torch, and bit-equal for a row alone and in a batch."""

from __future__ import annotations

import pytest
import torch

from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])

SHAPES = [
    (960, 576),
    (576, 1536),
    (1, 1),
    (17, 33),
    (50, 577),
    (129, 300),
    (48, 2),
    (1000, 129),
    (4864, 896),
]
ROWS = [0, 1, 2, 3, 7, 8, 17, 31, 65, 513]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_agrees_with_torch(shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, offset = torch.randn(shape), torch.randn(shape[0]) if bias else None
    ops = NativeOps(dtype, threads=2)
    packed = ops.pack(weight, offset)
    for rows in ROWS if shape[0] < 500 else ROWS[:6]:
        x = torch.randn(rows, shape[1])
        rounded = x.to(dtype).double() @ weight.to(dtype).double().T
        expected = (rounded + (0 if offset is None else offset)).float()
        torch.testing.assert_close(
            ops.linear(x, packed), expected, atol=3e-5 * shape[1] ** 0.5, rtol=1e-4
        )


@pytest.mark.parametrize("shape", [(960, 576), (50, 577), (2000, 300)], ids=str)
def test_a_row_is_the_same_bits_in_any_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, offset, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(200, shape[1])
    ops = NativeOps(dtype, threads=1)
    packed = ops.pack(weight, offset)
    alone = torch.cat([ops.linear(x[i : i + 1], packed) for i in range(200)])
    for threads in (1, 2, 3):
        ops = NativeOps(dtype, threads)
        packed = ops.pack(weight, offset)
        for rows in (2, 5, 8, 13, 64, 67, 200):
            assert torch.equal(ops.linear(x[:rows], packed), alone[:rows])


def test_a_wrong_sum_order_would_show(dtype: torch.dtype) -> None:
    """The mutant of the test above: the same product summed in two halves has other bits."""
    torch.manual_seed(0)
    weight, x = torch.randn(96, 576), torch.randn(1, 576)
    ops = NativeOps(dtype, threads=1)
    halves = sum(
        ops.linear(x[:, part].contiguous(), ops.pack(weight[:, part]))
        for part in (slice(0, 288), slice(288, 576))
    )
    assert not torch.equal(halves, ops.linear(x, ops.pack(weight)))


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logits_of_a_large_vocabulary(softcap: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(151_936, 32), torch.randn(3, 32) * 10
    ops = NativeOps(dtype, threads=2)
    got = ops.logits(x, ops.pack(weight), softcap)
    reference = ReferenceOps(torch.float32, torch.device("cpu"))
    expected = reference.logits(
        x.to(dtype).float(), reference.pack(weight.to(dtype).float()), softcap
    )
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", [(50, 577), (49, 64)], ids=str)
def test_embedding_reads_the_packed_table(shape: tuple[int, int], dtype: torch.dtype) -> None:
    table = torch.randn(shape)
    ops = NativeOps(dtype, threads=2)
    ids = torch.tensor([0, 48, 16, 15, 48, 3], dtype=torch.int32)
    got = ops.embed(ids, ops.pack(table), 1.5)
    assert torch.equal(got, table.to(dtype).float()[ids.long()] * 1.5)


def test_embedding_outside_the_table_is_zero(dtype: torch.dtype) -> None:
    ops = NativeOps(dtype, threads=1)
    ids = torch.tensor([-1, 50, 2**31 - 1], dtype=torch.int32)
    assert not ops.embed(ids, ops.pack(torch.randn(50, 64)), 1.0).any()


@pytest.mark.parametrize("columns", [16, 576, 577, 1000])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_norms(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    x, residual, weight = (
        torch.randn(rows, columns),
        torch.randn(rows, columns),
        torch.rand(columns),
    )
    ops, reference = NativeOps(torch.float32, 2), ReferenceOps(torch.float32, torch.device("cpu"))
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    other = residual.clone()
    got = ops.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(got, reference.add_rms_norm(x, other, weight, 1e-5))
    assert torch.equal(residual, other)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("columns", [1, 16, 577, 1536])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_gating(activation: str, columns: int, rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 2 * columns) * 4
    x[:, : columns // 3] *= 30
    ops, reference = NativeOps(torch.float32, 2), ReferenceOps(torch.float32, torch.device("cpu"))
    torch.testing.assert_close(
        ops.gated(x, activation), reference.gated(x, activation), atol=1e-5, rtol=3e-6
    )


def test_gather_rows() -> None:
    x, rows = torch.randn(20, 33), torch.tensor([3, 19, 3], dtype=torch.int32)
    assert torch.equal(NativeOps(torch.float32, 2).gather_rows(x, rows), x[[3, 19, 3]])
