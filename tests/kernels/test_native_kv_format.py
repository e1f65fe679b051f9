"""Attention in C++ over codes: against the reference with the same codes, and bit-equal however a step is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.core.errors import ConfigError
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.ops import Ops
from nonet.kernels.reference.ops import ReferenceOps
from nonet.kv.format import KV_FORMATS
from tests.kernels.native_cases import (
    Case,
    attend,
    history,
    no_rotation,
    poisoned_cache,
    run_step,
)
from tests.kernels.stored_entries import entries_of

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])

CPU = torch.device("cpu")
CASES = [
    Case(((1, 1),)),
    Case(((1, 200), (1, 17), (1, 16), (1, 15), (2, 5))),
    Case(tuple((1 + i % 2, 10 + 37 * i) for i in range(7)), heads=9, kv_heads=3),
    Case(tuple((1, 5 + 31 * i) for i in range(5)), heads=14, kv_heads=2, window=33),
    Case(((1, 1100),), heads=9, kv_heads=3, block_size=32),
    Case(((3, 3), (17, 40), (1, 129), (128, 128)), heads=16, kv_heads=16, dim=32),
    Case(((5, 300), (0, 20), (1, 128)), heads=14, kv_heads=2),
    Case(((9, 140), (1, 33)), heads=4, kv_heads=1, dim=256),
    Case(((9, 140), (1, 33)), heads=4, kv_heads=4, dim=80, block_size=32),
    Case(((2, 70),), heads=30, kv_heads=1, dim=16),
    Case(((3, 150), (1, 40)), softcap=20.0),
    *(Case(((40, 150), (1, 40), (1, 300)), window=window) for window in (1, 15, 100)),
]
# One token each with and without a window, chunks of every length, a lone long context, wide heads.
MIXED = [CASES[3], CASES[4], CASES[5], CASES[6], CASES[7]]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["int8", "fp8"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype, name: str) -> None:
    case = dataclasses.replace(case, kv_format=name)
    past = history(case)
    got = attend(NativeOps(dtype, threads=2), case, past)
    expected = attend(ReferenceOps(torch.float32, CPU), case, past)
    tolerance = 2e-5 if dtype == torch.float32 else 1.5e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_threads_and_neighbours_do_not_change_bits(
    case: Case, dtype: torch.dtype, name: str
) -> None:
    case = dataclasses.replace(case, kv_format=name)
    past = history(case)
    ops = NativeOps(dtype, threads=2)
    together = attend(ops, case, past)
    assert torch.equal(attend(NativeOps(dtype, threads=3), case, past), together)
    ops = NativeOps(dtype, threads=1)
    first = 0
    for seq, (queries, length) in enumerate(case.sequences):
        alone = dataclasses.replace(case, sequences=((queries, length),))
        rows = dataclasses.replace(history(alone), rows=(past.rows[seq],))
        if queries:
            assert torch.equal(attend(ops, alone, rows), together[first : first + queries])
        first += queries


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("window", [None, 20])
def test_chunks_do_not_change_bits(
    chunk: int, window: int | None, dtype: torch.dtype, name: str
) -> None:
    case = Case(((290, 290),), heads=9, kv_heads=3, window=window, kv_format=name)
    past = history(case)
    ops = NativeOps(dtype, threads=2)
    whole = attend(ops, case, past)
    cache, cos_sin = poisoned_cache(ops, case), no_rotation(case)
    parts = [
        run_step(ops, case, cache, past.inputs([(start, min(start + chunk, 290))]), cos_sin)
        for start in range(0, 290, chunk)
    ]
    assert torch.equal(torch.cat(parts), whole)


def stored(ops: Ops, case: Case, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `ops` keep of keys, and of values equal to them, [T, D] in one head: dequantised."""
    past = dataclasses.replace(history(case), rows=(torch.cat((keys, keys, keys), dim=1),))
    qkv, inputs = past.inputs([(0, len(keys))])
    cache = ops.allocate_cache(case.num_blocks, case.block_size, 1, case.dim, case.format)
    ops.rope_store(qkv, case.layout, no_rotation(case), cache, inputs, None, None, 1e-6)
    return entries_of(ops, cache, inputs.slots.long())


def every_kind_of_number(count: int, dim: int) -> torch.Tensor:
    """Entries [count, D] of magnitudes from 2^-20 to 2^20, each with small and large numbers and exact ties."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(count, dim, generator=generator) * 2.0 ** torch.randint(
        -12, 3, (count, dim), generator=generator
    )
    ties = torch.randint(-900, 900, (count, dim), generator=generator) / 2.0
    entries = torch.where(torch.arange(count).unsqueeze(1) % 2 == 0, spread, ties)
    entries[1::2, 0] = 127.0  # the scale is 1, so halves are ties
    entries[1::2].clamp_(-127, 127)
    return entries * 2.0 ** torch.randint(-20, 20, (count, 1), generator=generator)


def test_codes_are_those_of_the_reference(dtype: torch.dtype, name: str) -> None:
    case = Case(((2048, 2048),), heads=1, kv_heads=1, dim=64, block_size=32, kv_format=name)
    entries = every_kind_of_number(2048, 64)
    entries[7] = 0.0
    found = stored(NativeOps(dtype, threads=2), case, entries)
    expected = stored(ReferenceOps(torch.float32, CPU), case, entries)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_float8_is_the_cast_of_torch_bit_for_bit() -> None:
    """2^20 numbers, among them all that bfloat16 has in the range of float8, in entries whose scale is exactly 1."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(torch.bfloat16).float()
    numbers = numbers[(numbers.abs() <= 448) & (numbers != 0)]
    generator = torch.Generator().manual_seed(4)
    rest = (1 << 20) - len(numbers)
    random = torch.randn(rest, generator=generator) * 2.0 ** torch.randint(
        -12, 8, (rest,), generator=generator
    )
    numbers = torch.cat((numbers, random.clamp(-448, 448)))[: 4160 * 252].view(-1, 252)
    entries = torch.cat((torch.full((len(numbers), 4), 448.0), numbers), dim=1)
    case = Case(((len(entries),) * 2,), heads=1, kv_heads=1, dim=256, kv_format="fp8")
    found, _ = stored(NativeOps(torch.bfloat16, threads=2), case, entries)
    expected = entries.to(torch.float8_e4m3fn).float()
    assert torch.equal(
        found.squeeze(1).view(torch.int32), expected.view(torch.int32)
    )  # signs of zeros too


def test_what_is_not_finite_stays_so(dtype: torch.dtype, name: str) -> None:
    case = Case(((3, 3),), heads=1, kv_heads=1, kv_format=name)
    entries = torch.randn(3, 64)
    entries[0, 5], entries[1, 63] = float("inf"), float("nan")
    for ops in (NativeOps(dtype, threads=1), ReferenceOps(torch.float32, CPU)):
        keys, values = stored(ops, case, entries)
        assert keys[:2].isnan().all()
        assert values[:2].isnan().all()
        assert keys[2].isfinite().all()


@pytest.mark.parametrize("wrong", ["head", "token", "values"])
def test_mutants_of_scales_are_seen(wrong: str, dtype: torch.dtype, name: str) -> None:
    """The comparison with the reference must fail for scales of another head, of the previous token, of K for V."""
    case = Case(((1, 60),), kv_format=name)
    past = history(case)
    spread = 2.0 ** torch.arange(60).remainder(5).unsqueeze(1)
    heads = torch.tensor([1.0] * 6 + [1.0, 3.0] + [2.0, 5.0]).repeat_interleave(64)
    past = dataclasses.replace(past, rows=(past.rows[0] * spread * heads,))
    expected = attend(ReferenceOps(torch.float32, CPU), case, past)
    ops = NativeOps(dtype, threads=1)
    cache, cos_sin = poisoned_cache(ops, case), no_rotation(case)
    for span in ((0, 59), (59, 60)):
        qkv, inputs = past.inputs([span])
        q = ops.rope_store(qkv.clone(), case.layout, cos_sin, cache, inputs, None, None, 1e-6)
    scales = cache.key_scales
    if wrong == "head":
        scales.copy_(scales.flip(1))
    elif wrong == "token":
        scales.copy_(scales.roll(1, 2))
    else:
        cache.value_scales.copy_(scales)
    got = ops.attention(q, case.layout, cache, inputs, scale=0.125, window=None, softcap=None)
    assert not torch.allclose(got, expected, atol=5e-2, rtol=5e-2)


def test_a_format_without_kernels_is_refused() -> None:
    class Unknown(type(KV_FORMATS.build("int8"))):
        name = "int7"
        kernels = ("reference",)

    with pytest.raises(
        ConfigError, match="kv_format is int7, which the native kernels do not hold"
    ):
        NativeOps(torch.float32, 1).allocate_cache(4, 16, 1, 64, Unknown())


def test_bytes_are_as_planned(name: str) -> None:
    ops = NativeOps(torch.bfloat16, 1)
    kv_format = KV_FORMATS.build(name)
    cache = ops.allocate_cache(5, 32, 3, 64, kv_format)
    held = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    assert not any(tensor.any() for tensor in held)
    each = kv_format.entry_bytes(64, dtype_bytes=2)
    assert sum(tensor.nbytes for tensor in held) == 5 * 2 * 32 * 3 * each == 5 * 2 * 32 * 3 * 66
