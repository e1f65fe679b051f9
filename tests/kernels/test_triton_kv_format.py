"""Codes in Triton: the cache write makes those of the format's own functions, and attention reads them right."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.config.memory import NUMBERS_BYTES
from nonet.engine.rehearsal import steps_for
from nonet.kernels.ops import AttentionInputs, Ops, QKVLayout, StepShape
from nonet.kernels.reference.ops import ReferenceOps
from nonet.kv.format import KV_FORMATS
from tests.kernels.gpu_cases import (
    DEVICE,
    DTYPES,
    INTERPRETER_WARNINGS,
    TOLERANCE,
    Case,
    attend,
    poisoned_cache,
    run,
    steps,
)

pytest.importorskip("triton", reason="triton is not installed")

import triton  # isort: skip
import triton.language as tl  # isort: skip

from nonet.kernels.triton import attention, attention_expanded  # isort: skip
from nonet.kernels.triton.attention_coded import codes_of, numbers_of, words_of  # isort: skip
from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter before triton is imported)
from tests.kernels.stored_entries import entries_of

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]

CPU = torch.device("cpu")
SMALL = [
    Case(((1, 70), (1, 17), (1, 16), (1, 1), (1, 33)), heads=4),
    Case(((1, 70), (2, 90)), heads=14, kv_heads=2, block_size=64),
    Case(((3, 3), (17, 40), (33, 33)), heads=3, kv_heads=1),
    Case(((9, 40), (1, 33)), heads=2, kv_heads=2, dim=80, block_size=32, q_norm=True),
    Case(((1, 40), (1, 33), (3, 9)), heads=4, kv_heads=2, dim=16),
    Case(((40, 70), (1, 40)), heads=2, kv_heads=1, window=17, softcap=20.0),
    Case(((7, 20), (1, 5)), padding=2),
]
# Too much for the interpreter.
LARGE = [
    Case(((1, 5000), (1, 1), (1, 700)), heads=32, kv_heads=8, dim=128),
    Case(((600, 2000), (1, 3000), (513, 513), (4, 90)), heads=32, kv_heads=8, dim=128),
    Case(((600, 1200), (1, 1000)), heads=32, kv_heads=8, dim=128, block_size=64, softcap=30.0),
    Case(((1, 1100), (600, 600)), heads=4, kv_heads=1, dim=256, window=512),
    Case(tuple((5, 200 + 71 * i) for i in range(30)), heads=28, kv_heads=4, dim=128),
]
CASES = SMALL + (LARGE if DEVICE.type == "cuda" else [])


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["int8", "fp8"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@triton.jit
def _all_numbers(words, even, odd, size: tl.constexpr, codes: tl.constexpr):
    at = tl.program_id(0) * size + tl.arange(0, size)
    low, high = numbers_of(tl.load(words + at), codes)
    tl.store(even + at, low)
    tl.store(odd + at, high)


def test_every_word_becomes_its_two_numbers(name: str) -> None:
    ops = TritonOps(torch.float16, DEVICE)
    cache = ops.allocate_cache(1, 16, 1, 64, KV_FORMATS.build(name))
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).to(DEVICE)
    even, odd = (torch.empty(len(words), dtype=torch.float16, device=DEVICE) for _ in range(2))
    size = 1024
    _all_numbers[(len(words) // size,)](words, even, odd, size=size, codes=codes_of(cache))
    expected = words.view(cache.keys.dtype).view(-1, 2).to(torch.float16)
    for found, right in zip((even, odd), expected.unbind(1), strict=True):
        is_code = right.isfinite()  # nothing is stored as NaN
        assert torch.equal(found[is_code], right[is_code])
    keys, _ = words_of(cache)
    assert keys.shape == (1, 1, 16, 32)
    assert keys.data_ptr() == cache.keys.data_ptr()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype, name: str) -> None:
    """All but the step's own tokens were stored by the reference; those may differ by a code where float32 does."""
    case = dataclasses.replace(case, kv_format=name)
    got, _ = attend(TritonOps(dtype, DEVICE), case)
    expected, _ = attend(ReferenceOps(torch.float32, CPU), case, given=dtype)
    limit = max(TOLERANCE[dtype], 2e-3)
    torch.testing.assert_close(got, expected, atol=limit, rtol=limit)


# Entries of the chunks in these cases are 3, 2 and 2 blocks of 64: room for the first two, for all, for none that are
# long, for one behind a sequence that is larger than the room; a window, of which nothing is made numbers.
MIXED = ((17, 130), (1, 33), (40, 70), (30, 90))
EXPANDED = [
    (Case(MIXED, heads=4, kv_heads=1, block_size=64), 5),
    (Case(MIXED, heads=4, kv_heads=1, block_size=64, padding=3), 8),
    (Case(((40, 70), (17, 130)), heads=4, kv_heads=2, dim=80), 1),
    (Case(((30, 200), (40, 70), (1, 9)), heads=4, kv_heads=1), 2),
    (Case(((40, 70), (1, 40)), heads=8, kv_heads=1, window=17, softcap=20.0), 8),
]
EXPANDED_LARGE = [
    *((case, room) for case in LARGE[1:4] for room in (1, 32, 512)),
    (Case(tuple((20, 60 + place) for place in range(70)), heads=8, kv_heads=2), 64),
]


@pytest.mark.parametrize(
    ("case", "room"), EXPANDED + (EXPANDED_LARGE if DEVICE.type == "cuda" else []), ids=str
)
def test_codes_made_numbers_for_chunks(
    case: Case, room: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some sequences of a step are, as many as there is room for; the others are read as codes. Twice on one memory."""
    case = dataclasses.replace(case, kv_format=name)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    monkeypatch.setattr(attention_expanded, "FROM_TOKENS", 1)
    monkeypatch.setattr(attention, "LEAST_TILES", 1)
    monkeypatch.setattr(attention_expanded, "_num_blocks", lambda layout, dtype: room)
    ops = TritonOps(dtype, DEVICE)
    for seed in range(2):
        got, _ = attend(ops, case, seed, given=dtype)
        expected, _ = attend(ReferenceOps(torch.float32, CPU), case, seed, given=dtype)
        limit = TOLERANCE[dtype]
        torch.testing.assert_close(got, expected, atol=limit, rtol=limit)
    expanded = ops.paged_attention.expanded.of(case.layout, dtype, len(case.sequences))
    taken, used = [], 0
    for queries, entries in case.sequences:
        blocks = -(-entries // 64) if queries * case.heads // case.kv_heads >= 64 else 0
        blocks = blocks if blocks <= room and case.window is None else 0
        used += blocks
        taken.append(int(blocks > 0 and used <= room))
    assert expanded.taken[: len(taken)].tolist() == taken
    assert not expanded.taken[len(taken) :].any()


def test_numbers_of_codes_take_what_was_planned() -> None:
    for heads, kv_heads, dim in ((32, 8, 128), (9, 3, 64), (18, 6, 80), (1, 1, 256)):
        layout = QKVLayout(heads, kv_heads, dim)
        blocks = attention_expanded._num_blocks(layout, torch.bfloat16)
        taken = 2 * 2 * blocks * 64 * kv_heads * dim
        assert NUMBERS_BYTES["triton"] // 2 < taken <= NUMBERS_BYTES["triton"]


def test_a_cold_start_compiles_for_long_steps_too() -> None:
    assert any(
        step.num_tokens >= attention_expanded.FROM_TOKENS
        for step in steps_for(StepShape(8192, 256, 256, 8192))
    )


def stored(ops: Ops, name: str, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `ops` keep, dequantised, of keys [T, 64] of one head and of values that are their negatives."""
    tokens = len(entries)
    case = Case(((tokens, tokens),), heads=1, kv_heads=1, block_size=32, kv_format=name)
    numbers = torch.arange(tokens, dtype=torch.int32, device=ops.device)
    inputs = AttentionInputs(
        positions=numbers,
        query_start=numbers[:2],
        kv_len=numbers[:1],
        block_table=numbers.view(1, -1),
        slots=numbers,
        max_query_len=tokens,
        max_kv_len=tokens,
    )
    cache = poisoned_cache(ops, case)
    qkv = torch.cat((entries, entries, -entries), dim=1).to(ops.device)
    cos_sin = torch.cat((torch.ones(tokens, 32), torch.zeros(tokens, 32)), 1).to(ops.device)
    ops.rope_store(qkv, case.layout, cos_sin, cache, inputs, None, None, 1e-6)
    keys, values = entries_of(ops, cache, numbers.long())
    return keys.cpu(), values.cpu()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity * 0
def test_codes_are_those_of_the_reference(name: str) -> None:
    tokens = 96 if DEVICE.type == "cpu" else 16384
    generator = torch.Generator().manual_seed(5)
    entries = torch.randn(tokens, 64, generator=generator)
    entries *= 2.0 ** torch.randint(-12, 3, (tokens, 64), generator=generator)
    entries[::2] = torch.randint(-254, 254, (len(entries[::2]), 64), generator=generator) / 2.0
    entries[::2, 0] = 127.0  # the scale of int8 is 1, so halves are ties
    entries[5], entries[6, 3], entries[7, 60] = 0.0, float("inf"), float("nan")
    found = stored(TritonOps(torch.float32, DEVICE), name, entries)
    expected = stored(ReferenceOps(torch.float32, CPU), name, entries)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_float8_is_the_cast_of_torch(dtype: torch.dtype) -> None:
    """Every number of bfloat16 in the range of float8 (some of them in the interpreter), where the scale is 1."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    numbers = numbers[numbers.abs() <= 448]
    if DEVICE.type == "cpu":
        numbers = numbers[:: len(numbers) // 6000]
    numbers = numbers.to(dtype).float()
    numbers = numbers[: len(numbers) // 63 * 63].view(-1, 63)
    entries = torch.cat((torch.full((len(numbers), 1), 448.0), numbers), dim=1)
    found, _ = stored(TritonOps(dtype, DEVICE), "fp8", entries.to(dtype))
    assert torch.equal(found.squeeze(1), entries.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("wrong", ["head", "token"])
def test_mutants_of_scales_are_seen(wrong: str, name: str) -> None:
    case = Case(((1, 40), (20, 40)), kv_format=name, block_size=64)
    expected, _ = attend(ReferenceOps(torch.float32, CPU), case)
    ops = TritonOps(torch.float32, DEVICE)
    _, cache = attend(ops, case)
    _, step = steps(case)
    for scales in (cache.key_scales, cache.value_scales):
        scales.copy_(scales.flip(1) if wrong == "head" else scales.roll(1, 2))
    nowhere = dataclasses.replace(step.inputs, slots=torch.full_like(step.inputs.slots, -1))
    got = run(ops, case, cache, dataclasses.replace(step, inputs=nowhere)).cpu()
    assert not torch.allclose(got, expected, atol=1e-2, rtol=1e-2)


def test_windows_read_no_freed_block(name: str) -> None:
    """A freed block is the null block in the table; it holds poison here."""
    case = Case(((2, 90), (30, 90)), heads=2, kv_heads=1, window=20, kv_format=name)
    ops = TritonOps(torch.float32, DEVICE)
    expected, cache = attend(ops, case)
    _, step = steps(case)
    step.inputs.block_table[0, :4] = 0
    step.inputs.block_table[1, :2] = 0
    got = run(ops, case, cache, step).cpu()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
