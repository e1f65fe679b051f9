"""Paged attention in C++: against the reference, on poisoned memory, and bit-equal however a step is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.native_cases import (
    Case,
    attend,
    history,
    no_rotation,
    poisoned_cache,
    run_step,
)

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])

CASES = [
    Case(((1, 1),)),
    Case(((1, 200), (1, 17), (1, 16), (1, 15))),
    Case(tuple((1 + i % 2, 10 + 37 * i) for i in range(13)), heads=9, kv_heads=3),
    Case(tuple((1, 5 + 31 * i) for i in range(9)), heads=16, kv_heads=16),
    Case(tuple((1, 5 + 31 * i) for i in range(9)), heads=14, kv_heads=2, window=33),
    Case(((1, 1100),), heads=3, kv_heads=3),
    Case(((1, 1100),), heads=9, kv_heads=3, block_size=32),
    Case(((3, 3), (17, 40), (1, 129), (128, 128)), heads=9, kv_heads=3),
    Case(((513, 513),), heads=4, kv_heads=1),
    Case(((5, 300), (0, 20), (1, 128)), heads=14, kv_heads=2),
    Case(((9, 140),), heads=8, kv_heads=1, dim=128),
    Case(((9, 140), (1, 33)), heads=4, kv_heads=1, dim=256),
    Case(((9, 140), (1, 33)), heads=4, kv_heads=4, dim=80, block_size=32),
    Case(((2, 70),), heads=30, kv_heads=1, dim=16),
    Case(((3, 150), (1, 40)), softcap=20.0),
    *(Case(((40, 150), (1, 40), (1, 300)), window=window) for window in (1, 15, 16, 17, 100)),
    Case(((1, 1100), (600, 600)), heads=4, kv_heads=1, dim=256, window=512),
]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype) -> None:
    past = history(case)
    got = attend(NativeOps(dtype, threads=2), case, past)
    expected = attend(ReferenceOps(torch.float32, torch.device("cpu")), case, past)
    tolerance = 2e-5 if dtype == torch.float32 else 1.5e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_do_not_change_bits(case: Case, dtype: torch.dtype) -> None:
    past = history(case)
    alone = attend(NativeOps(dtype, threads=1), case, past)
    for threads in (2, 3):
        assert torch.equal(attend(NativeOps(dtype, threads), case, past), alone)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neighbours_do_not_change_bits(case: Case, dtype: torch.dtype) -> None:
    past = history(case)
    ops = NativeOps(dtype, threads=2)
    together = attend(ops, case, past)
    first = 0
    for seq, (queries, length) in enumerate(case.sequences):
        alone = dataclasses.replace(case, sequences=((queries, length),))
        rows = dataclasses.replace(history(alone), rows=(past.rows[seq],))
        if queries:
            assert torch.equal(attend(ops, alone, rows), together[first : first + queries])
        first += queries


@pytest.mark.parametrize("chunk", [1, 3, 16, 100])
@pytest.mark.parametrize("window", [None, 20])
def test_chunks_do_not_change_bits(chunk: int, window: int | None, dtype: torch.dtype) -> None:
    case = Case(((290, 290),), heads=9, kv_heads=3, window=window)
    past = history(case)
    ops = NativeOps(dtype, threads=2)
    whole = attend(ops, case, past)
    cache, cos_sin = poisoned_cache(ops, case), no_rotation(case)
    parts = [
        run_step(ops, case, cache, past.inputs([(start, min(start + chunk, 290))]), cos_sin)
        for start in range(0, 290, chunk)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_null_slots_store_nothing(dtype: torch.dtype) -> None:
    case = Case(((4, 20),))
    qkv, inputs = history(case).inputs([(16, 20)])
    ops = NativeOps(dtype, threads=1)
    cache = poisoned_cache(ops, case)
    nowhere = dataclasses.replace(inputs, slots=torch.full((4,), -1, dtype=torch.int32))
    ops.rope_store(qkv, case.layout, no_rotation(case), cache, nowhere, None, None, 1e-6)
    assert cache.keys.isnan().all()
    assert cache.values.isnan().all()


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_rotation_and_head_norms(dim: int, with_norm: bool) -> None:
    case = Case(((37, 37),), heads=4, kv_heads=2, dim=dim)
    angles = torch.rand(64, dim // 2) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    norms = [torch.rand(dim) + 0.5 if with_norm else None for _ in range(2)]
    qkv, inputs = history(case).inputs([(0, 37)])
    results = []
    for ops in (NativeOps(torch.float32, 2), ReferenceOps(torch.float32, torch.device("cpu"))):
        cache = poisoned_cache(ops, case)
        q = ops.rope_store(qkv.clone(), case.layout, cos_sin, cache, inputs, *norms, 1e-6)
        mixed = ops.attention(q, case.layout, cache, inputs, scale=0.1, window=None, softcap=None)
        results.append((q, mixed))
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=2e-5)
