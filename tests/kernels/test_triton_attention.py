"""Paged attention and the cache write in Triton against the reference: ragged mixes, poisoned memory, any cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.kernels.ops import LayerCache
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import (
    DEVICE,
    DTYPES,
    INTERPRETER_WARNINGS,
    TOLERANCE,
    Case,
    attend,
    poisoned_cache,
    run,
    share_near,
    steps,
)

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter before triton is imported)

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]

SMALL = [
    Case(((1, 1),), heads=2, kv_heads=1),
    Case(((1, 150), (1, 17), (1, 16), (1, 15)), heads=4),
    Case(((1, 150), (1, 1), (1, 64), (1, 15), (1, 33)), heads=4, padding=2),
    Case(((1, 100), (1, 33)), heads=9, kv_heads=3, block_size=32),
    Case(((1, 70), (2, 90)), heads=14, kv_heads=2, block_size=64),
    Case(((3, 3), (17, 40), (1, 70), (33, 33)), heads=3, kv_heads=1),
    Case(((22, 60),), heads=4, kv_heads=1, dim=128, block_size=64),
    Case(((20, 50), (1, 33)), heads=4, kv_heads=1, dim=256, block_size=64),
    Case(((9, 40), (1, 33)), heads=2, kv_heads=2, dim=80, block_size=32, q_norm=True),
    Case(((2, 40),), heads=30, kv_heads=1, dim=16),
    Case(((20, 40), (1, 20)), heads=2, softcap=20.0),
    *(Case(((40, 70), (1, 40), (1, 80)), heads=2, kv_heads=1, window=w) for w in (1, 16, 17, 50)),
    Case(((1, 30), (1, 5)), padding=3, q_norm=True),
    Case(((7, 20), (1, 5)), padding=2),
]
# Too much for the interpreter.
LARGE = [
    Case(((1, 5000), (1, 1), (1, 700)), heads=32, kv_heads=8, dim=128),
    Case(((1, 4097),), heads=32, kv_heads=8, dim=128, block_size=64),
    Case(tuple((1, 37 * i % 900 + 1) for i in range(70)), heads=32, kv_heads=8, dim=128),
    Case(((600, 2000), (1, 3000), (513, 513), (4, 90)), heads=32, kv_heads=8, dim=128),
    Case(((600, 1200), (1, 1000)), heads=32, kv_heads=8, dim=128, block_size=64, softcap=30.0),
    Case(((1, 1100), (600, 600)), heads=4, kv_heads=1, dim=256, window=512),
    Case(((1, 2000), (900, 1000)), heads=8, kv_heads=8, dim=64, window=300),
    Case(tuple((5, 200 + 71 * i) for i in range(30)), heads=28, kv_heads=4, dim=128),
]
CASES = SMALL + (LARGE if DEVICE.type == "cuda" else [])


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype) -> None:
    if DEVICE.type == "cpu" and dtype == torch.float16 and case is not SMALL[5]:
        pytest.skip("the interpreter is slow: float16 is tried on one case")
    got, cache = attend(TritonOps(dtype, DEVICE), case)
    expected, expected_cache = attend(ReferenceOps(torch.float32, torch.device("cpu")), case)
    limit = TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, atol=limit, rtol=limit)
    assert_caches_equal(cache, expected_cache, limit)


def assert_caches_equal(cache: LayerCache, expected: LayerCache, limit: float) -> None:
    """What was stored is equal, and what was not is still poison: nothing else was written."""
    for mine, theirs in ((cache.keys, expected.keys), (cache.values, expected.values)):
        stored = mine.transpose(1, 2).float().cpu()
        torch.testing.assert_close(stored, theirs, atol=limit, rtol=limit, equal_nan=True)


@pytest.mark.parametrize("lengths", [(1,), (90, 33), (60, 1, 2, 3, 33)], ids=str)
def test_heads_are_rounded_on_the_way(lengths: tuple[int, ...]) -> None:
    """Where float8 linears follow, a decode step leaves its result in float8 too, with a scale for each head."""
    case = Case(tuple((1, length) for length in lengths), heads=4, kv_heads=2, dim=128)
    ops = TritonOps(torch.float32, DEVICE)
    plain, _ = attend(ops, case)
    ops._has_float8 = True
    got, _ = attend(ops, case)
    assert torch.equal(got, plain)
    assert ops._rounded is not None
    rounded = ops._rounded[1]
    heads = got.view(-1, 4, 128)
    torch.testing.assert_close(rounded.scale.cpu(), heads.abs().amax(-1) / 448)
    back = rounded.codes.float().cpu().view(-1, 4, 128) * rounded.scale.cpu()[:, :, None]
    assert share_near(back, heads) > (0.999 if DEVICE.type == "cuda" else 0.95)


def test_windows_read_no_freed_block() -> None:
    """A freed block is the null block in the table; it holds poison here."""
    case = Case(((2, 90), (30, 90)), heads=2, kv_heads=1, window=20)
    ops = TritonOps(torch.float32, DEVICE)
    expected, cache = attend(ops, case)
    _, step = steps(case)
    step.inputs.block_table[0, :4] = 0
    step.inputs.block_table[1, :2] = 0
    assert torch.isnan(cache.keys[0]).all()
    got = run(ops, case, cache, step).cpu()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["window", "softcap", "length"])
def test_mutants_are_seen(wrong: str) -> None:
    """The comparison above must fail for kernels that are slightly wrong."""
    case = Case(((20, 40), (1, 30)), heads=2, kv_heads=1, window=17, softcap=5.0)
    expected, _ = attend(ReferenceOps(torch.float32, torch.device("cpu")), case)
    mutant = {
        "window": dataclasses.replace(case, window=18),
        "softcap": dataclasses.replace(case, softcap=None),
        "length": dataclasses.replace(case, window=16),
    }[wrong]
    got, _ = attend(TritonOps(torch.float32, DEVICE), mutant)
    assert (got - expected).abs().max() > 1e-2


def test_chunks_equal_one_prefill() -> None:
    """The same tokens in chunks, the last by the kernel for few queries."""
    case = Case(((75, 75),), heads=2, kv_heads=1)
    ops = TritonOps(torch.float32, DEVICE)
    whole, _ = attend(ops, case)
    _, step = steps(case)
    cache = poisoned_cache(ops, case)
    parts = []
    for start, stop in ((0, 33), (33, 74), (74, 75)):
        inputs = dataclasses.replace(
            step.inputs,
            positions=step.inputs.positions[start:stop],
            slots=step.inputs.slots[start:stop],
            query_start=torch.tensor([0, stop - start], dtype=torch.int32),
            kv_len=torch.tensor([stop], dtype=torch.int32),
            max_query_len=stop - start,
        )
        chunk = dataclasses.replace(step, qkv=step.qkv[start:stop], inputs=inputs)
        parts.append(run(ops, case, cache, chunk).cpu())
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-6, rtol=2e-6)


def test_partial_results_leave_no_trace() -> None:
    """Arrival counters are zero after each launch: the same step again gives the same bits."""
    case = Case(((1, 200), (1, 150), (1, 9), (1, 40), (1, 1)), heads=4, kv_heads=1)
    ops = TritonOps(torch.float32, DEVICE)
    once, cache = attend(ops, case)
    _, step = steps(case)
    for _ in range(3):
        assert torch.equal(run(ops, case, cache, step).cpu(), once)
