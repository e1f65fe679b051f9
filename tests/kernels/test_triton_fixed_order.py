"""Triton kernels in fixed order: near the reference, and a row's bits are the same whatever is computed beside it.

Compiled kernels are compared over all their tilings. The interpreter multiplies through numpy, which takes a sum in
another order for another shape, so there rows are compared within one tiling, and orders of segments on sums that are
exact but for the order of segments.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import (
    DEVICE,
    DTYPES,
    INTERPRETER_WARNINGS,
    TOLERANCE,
    Case,
    Step,
    attend,
    poisoned_cache,
    run,
    steps,
)

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton import attention_fixed  # isort: skip  (gpu_cases chooses the interpreter)
from nonet.kernels.triton.fixed_order import FixedOrderOps  # isort: skip
from nonet.kernels.triton.linear_fixed import FixedLinears, FixedTiling, segments_of  # isort: skip
from nonet.kernels.triton.quantize_rows import quantize_rows  # isort: skip
from tests.kernels.test_triton_attention import CASES  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
IS_GPU = DEVICE.type == "cuda"
HALF = torch.bfloat16 if IS_GPU else torch.float16
NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# Splits of 256: lengths on both sides of their borders.
LONG = [
    Case(((1, 600), (1, 256), (3, 520), (1, 257)), heads=2, kv_heads=1),
    Case(((40, 300), (1, 513)), heads=2, kv_heads=1, window=270),
]


@pytest.mark.parametrize("case", [*CASES, *LONG], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_agrees_with_reference(case: Case, dtype: torch.dtype) -> None:
    if not IS_GPU and dtype == torch.float16 and case is not LONG[0]:
        pytest.skip("the interpreter is slow: float16 is tried on one case")
    got, _ = attend(FixedOrderOps(dtype, DEVICE), case)
    expected, _ = attend(ReferenceOps(torch.float32, torch.device("cpu")), case)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_attention_reads_codes(name: str) -> None:
    case = Case(((1, 300), (20, 40)), kv_format=name)
    got, _ = attend(FixedOrderOps(torch.float32, DEVICE), case)
    expected, _ = attend(ReferenceOps(torch.float32, torch.device("cpu")), case)
    torch.testing.assert_close(got, expected, atol=3e-5, rtol=3e-5)


def in_chunks(ops: FixedOrderOps, case: Case, cuts: list[int]) -> torch.Tensor:
    """The one sequence of the case, computed in chunks that end at `cuts`."""
    _, step = steps(case)
    cache = poisoned_cache(ops, case)
    parts = []
    for start, stop in zip([0, *cuts], cuts, strict=False):
        parts.append(run(ops, case, cache, cut(step, start, stop)).cpu())
    return torch.cat(parts)


def cut(step: Step, start: int, stop: int) -> Step:
    """Tokens [start, stop) of the step's only sequence."""
    inputs = dataclasses.replace(
        step.inputs,
        positions=step.inputs.positions[start:stop],
        slots=step.inputs.slots[start:stop],
        query_start=torch.tensor([0, stop - start], dtype=torch.int32),
        kv_len=torch.tensor([stop], dtype=torch.int32),
        max_query_len=stop - start,
        max_kv_len=stop,
    )
    return dataclasses.replace(step, qkv=step.qkv[start:stop], inputs=inputs)


CHUNKED = [
    (Case(((300, 300),), heads=2, kv_heads=1), [33, 74, 75, 256, 257, 299, 300]),
    (Case(((290, 290),), heads=4, kv_heads=1, window=40), [100, 101, 260, 289, 290]),
    (Case(((120, 120),), heads=3, kv_heads=1, softcap=20.0, kv_format="int8"), [50, 119, 120]),
]
if IS_GPU:
    WIDE = Case(((3000, 3000),), heads=32, kv_heads=8, dim=128, block_size=64)
    CHUNKED += [
        (WIDE, [1, 2, 700, 1024, 1030, 2999, 3000]),
        (dataclasses.replace(WIDE, kv_format="fp8"), [5, 900, 2050, 2999, 3000]),
        (dataclasses.replace(WIDE, dim=256, heads=8, kv_heads=4), [5, 900, 2050, 2999, 3000]),
        (dataclasses.replace(WIDE, block_size=16, heads=28, kv_heads=4), [77, 2048, 2999, 3000]),
    ]


@pytest.mark.parametrize(("case", "cuts"), CHUNKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_chunks_give_the_bits_of_one_prefill(
    case: Case, cuts: list[int], dtype: torch.dtype
) -> None:
    if not IS_GPU and dtype != torch.float32:
        pytest.skip("the interpreter is slow: float16 is tried on one case")
    ops = FixedOrderOps(dtype, DEVICE)
    whole = in_chunks(ops, case, [case.num_tokens])
    assert torch.isfinite(whole.float()).all()
    assert torch.equal(in_chunks(ops, case, cuts), whole)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_a_sequence_alone_gives_its_bits_in_a_batch(dtype: torch.dtype) -> None:
    case = Case(((1, 300), (2, 90), (20, 270), (1, 17)), heads=4, kv_heads=2)
    ops = FixedOrderOps(dtype, DEVICE)
    whole, cache = attend(ops, case)
    _, step = steps(case)
    first = 0
    for number, (queries, length) in enumerate(case.sequences):
        alone = dataclasses.replace(
            step,
            qkv=step.qkv[first : first + queries],
            inputs=dataclasses.replace(
                step.inputs,
                positions=step.inputs.positions[first : first + queries],
                slots=step.inputs.slots[first : first + queries],
                block_table=step.inputs.block_table[number : number + 1],
                query_start=torch.tensor([0, queries], dtype=torch.int32),
                kv_len=torch.tensor([length], dtype=torch.int32),
                max_query_len=queries,
                max_kv_len=length,
            ),
        )
        got = run(ops, case, cache, alone).float().cpu()
        assert torch.equal(got, whole[first : first + queries])
        first += queries


def test_without_room_for_splits_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences whose splits find no room are worked out in turn; 64 units hold the first few heads here."""
    case = Case(((1, 900), (1, 700), (1, 300)), heads=4, kv_heads=2)
    roomy, _ = attend(FixedOrderOps(torch.float32, DEVICE), case)
    ops = FixedOrderOps(torch.float32, DEVICE)
    scratch = ops.fixed_attention._scratch_for
    monkeypatch.setattr(
        ops.fixed_attention,
        "_scratch_for",
        lambda *key: dataclasses.replace(scratch(*key), units=9),
    )
    crowded, _ = attend(ops, case)
    assert torch.equal(crowded, roomy)


def test_another_split_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sum is cut does change bits: an equality above that cannot fail would prove nothing."""
    case = Case(((1, 600),), heads=2, kv_heads=1)
    expected, _ = attend(FixedOrderOps(torch.float32, DEVICE), case)
    monkeypatch.setattr(attention_fixed, "SPLIT", 128)
    got, _ = attend(FixedOrderOps(torch.float32, DEVICE), case)
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def near(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


SHAPES = [(1, 100, 256), (20, 192, 1100), (70, 64, 2048), (300, 130, 1024)]
WIDE_SHAPES = [(1, 4096, 4096), (64, 6144, 4096), (257, 4096, 14336), (700, 28672, 4096)]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES + (WIDE_SHAPES if IS_GPU else []))
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_linear_equals_the_product(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    if dtype == torch.float32 and outputs > 1000:
        pytest.skip("float32 is for tests")
    x = torch.randn(rows, inputs, device=DEVICE, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=dtype)
    bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
    linears = FixedLinears(DEVICE)
    exact = x.double() @ weight.double().t() + bias.double()
    for _ in range(2):  # the second run meets the arrival counters that the first left
        assert near(linears(x, weight, bias, dtype), exact) < NEAR[dtype]
    assert linears(x[:0], weight, bias, dtype).shape == (0, outputs)


def test_segments_are_added_first_to_last() -> None:
    """Few rows and many, where all sums are exact but for the order of segments: 2**27 + 1 - 2**27 is 0 in float32."""
    inputs = 2048
    segments = segments_of(64, inputs)
    assert segments == 4
    x = torch.zeros(300, inputs)
    for segment, value in enumerate((2.0**27, 1.0, -(2.0**27), 1.0)):
        x[:, segment * inputs // segments + 5] = value
    weight = torch.ones(64, inputs)
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    linears = FixedLinears(DEVICE)
    for rows in (1, 20, 70, 300):
        got = linears(x[:rows], weight, None, torch.float32)
        assert torch.equal(got, torch.ones_like(got)), rows


def test_rows_of_one_tiling_do_not_depend_on_each_other() -> None:
    x, weight = torch.randn(64, 1100, device=DEVICE), torch.randn(96, 1100, device=DEVICE)
    linears = FixedLinears(DEVICE)
    tiling = FixedTiling(64, 64, 32, 4, 2)
    whole = linears(x, weight, None, torch.float32, tiling=tiling)
    for row in (0, 17, 63):
        alone = linears(x[row : row + 1], weight, None, torch.float32, tiling=tiling)
        assert torch.equal(alone, whole[row : row + 1])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (1000, 14336), (28672, 4096)])
@pytest.mark.parametrize("kind", ["dense", "float8", "blocks"])
def test_any_number_of_rows_gives_the_same_bits(outputs: int, inputs: int, kind: str) -> None:
    """All tilings, that is: 1, 16, 32, 64 and many rows."""
    x = torch.randn(2000, inputs, device=DEVICE, dtype=HALF)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=HALF)
    bias = torch.randn(outputs, device=DEVICE, dtype=HALF)
    linears = FixedLinears(DEVICE)
    blocks = -(-inputs // 128)
    scale = torch.rand(outputs, device=DEVICE) + 0.5
    block_scales = (
        torch.rand(2000, blocks, device=DEVICE),
        torch.rand(outputs, blocks, device=DEVICE),
    )

    def product(rows: slice) -> torch.Tensor:
        if kind == "dense":
            return linears(x[rows], weight, bias, HALF)
        rounded, eighth = quantize_rows(x[rows]), weight.to(torch.float8_e4m3fn)
        x_scale, w_scale = rounded.scale, scale
        if kind == "blocks":
            x_scale, w_scale = block_scales[0][rows].contiguous(), block_scales[1]
        return linears(rounded.codes, eighth, bias, HALF, x_scale=x_scale, scale=w_scale)

    whole = product(slice(0, 2000))
    assert torch.isfinite(whole).all()
    for start, stop in (
        (0, 1),
        (5, 8),
        (7, 23),
        (0, 33),
        (1, 65),
        (900, 1030),
        (3, 300),
        (0, 1999),
    ):
        part = slice(start, stop)
        assert torch.equal(product(part), whole[part]), (start, stop)
