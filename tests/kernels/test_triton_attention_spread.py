"""Decode attention of very few sequences, spread over a fixed grid: near the reference, each with bits of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nonet.kernels.ops import QKVLayout
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import (
    DEVICE,
    DTYPES,
    INTERPRETER_WARNINGS,
    TOLERANCE,
    Case,
    attend,
    rotate_and_store,
    run,
    share_near,
    steps,
)

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton import attention, attention_spread  # isort: skip  (gpu_cases chooses the interpreter)
from nonet.kernels.triton.attention_spread import SpreadTiling, spread_scratch, spread_tiling  # isort: skip
from nonet.kernels.triton.ops import TritonOps  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]

CPU = torch.device("cpu")
IS_GPU = DEVICE.type == "cuda"


def decodes(*lengths: int, **shape: object) -> Case:
    return Case(tuple((1, length) for length in lengths), **shape)  # type: ignore[arg-type]


# Lengths on both sides of the borders of blocks and tiles; groups of 1 to 16; a tile may be in several blocks.
SMALL = [
    decodes(1, 15, 16, 17),
    decodes(63, 64, 65, block_size=64),
    decodes(1000, heads=4, kv_heads=1, block_size=32),
    decodes(1000, 1, heads=3, kv_heads=3, block_size=128),
    decodes(130, 64, heads=16, kv_heads=1, dim=128, block_size=64),
    decodes(65, 17, heads=2, kv_heads=1, dim=256, block_size=64),
    decodes(150, heads=14, kv_heads=2, dim=80, block_size=32, q_norm=True),
    decodes(40, 33, padding=2, heads=4),
    *(
        decodes(300, 64, 17, heads=2, kv_heads=1, window=window)
        for window in (1, 16, 17, 100, 1000)
    ),
    decodes(200, 90, padding=1, heads=4, window=65, softcap=20.0),
]
# Too much for the interpreter.
LARGE = [
    decodes(5000, 1, 700, 64, heads=32, kv_heads=8, dim=128, block_size=64),
    decodes(32768, heads=32, kv_heads=8, dim=128, block_size=16),
    decodes(4097, 1024, 1025, heads=32, kv_heads=32, dim=128, block_size=128, padding=1),
    decodes(6000, 513, heads=8, kv_heads=4, dim=256, window=1024, block_size=32),
]
CASES = SMALL + (LARGE if IS_GPU else [])


@pytest.fixture(autouse=True)
def no_other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise AssertionError("these steps are for attend_spread")

    monkeypatch.setattr(attention, "attend_few", refuse)


def ops_of(dtype: torch.dtype, multiprocessors: int = 0) -> TritonOps:
    """`multiprocessors` decides the number of splits; 0 is the device's own."""
    ops = TritonOps(dtype, DEVICE)
    if multiprocessors:
        ops.paged_attention = attention.PagedAttention(DEVICE, multiprocessors)
    return ops


# 8: a few splits of several tiles each. 132: an H100's, most splits have no tile here.
@pytest.mark.parametrize("multiprocessors", [8, 132])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype, multiprocessors: int) -> None:
    if not IS_GPU and (dtype == torch.float16 or multiprocessors == 132) and case is not SMALL[1]:
        pytest.skip("the interpreter is slow: all dtypes and splits are tried on one case")
    got, _ = attend(ops_of(dtype, multiprocessors), case)
    expected, _ = attend(ReferenceOps(torch.float32, CPU), case)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("case", [SMALL[1], SMALL[-1], *CASES[len(SMALL) :]], ids=str)
def test_reads_codes(case: Case, name: str, dtype: torch.dtype) -> None:
    if not IS_GPU and dtype == torch.float16 and case is not SMALL[1]:
        pytest.skip("the interpreter is slow: float16 is tried on one case")
    case = dataclasses.replace(case, kv_format=name)
    got, _ = attend(ops_of(dtype, 8), case)
    expected, _ = attend(ReferenceOps(torch.float32, CPU), case)
    limit = max(TOLERANCE[dtype], 2e-3)
    torch.testing.assert_close(got, expected, atol=limit, rtol=limit)


@pytest.mark.parametrize("lengths", [(300,), (1, 90, 65, 33)], ids=str)
def test_leaves_its_result_in_float8_too(lengths: tuple[int, ...]) -> None:
    case = decodes(*lengths, heads=4, kv_heads=2, dim=128, padding=4 - len(lengths))
    ops = ops_of(torch.float32, 8)
    plain, _ = attend(ops, case)
    ops._has_float8 = True
    got, _ = attend(ops, case)
    assert torch.equal(got, plain)
    assert ops._rounded is not None
    rounded, live = ops._rounded[1], len(lengths)
    heads = got.view(-1, 4, 128)
    scale = rounded.scale.cpu()[:live]
    torch.testing.assert_close(scale, heads.abs().amax(-1) / 448)
    back = rounded.codes.float().cpu().view(-1, 4, 128)[:live] * scale[:, :, None]
    assert share_near(back, heads) > (0.999 if IS_GPU else 0.95)


def test_sequences_share_blocks() -> None:
    """The second begins with the blocks of the first, as after a hit in the prefix cache."""
    case = decodes(200, 180, heads=4, kv_heads=1)
    results = []
    for ops in (ReferenceOps(torch.float32, CPU), ops_of(torch.float32, 8)):
        _, cache = attend(ops, case)
        _, step = steps(case)
        step.inputs.block_table[1, :8] = step.inputs.block_table[0, :8]
        results.append(run(ops, case, cache, step).cpu())
    torch.testing.assert_close(results[1], results[0], atol=3e-5, rtol=3e-5)


def test_windows_read_no_freed_block() -> None:
    """A freed block is the null block in the table; it holds poison here."""
    case = decodes(300, 150, heads=2, kv_heads=1, window=40)
    ops = ops_of(torch.float32, 8)
    expected, cache = attend(ops, case)
    _, step = steps(case)
    step.inputs.block_table[0, :16] = 0
    step.inputs.block_table[1, :6] = 0
    assert torch.isnan(cache.keys[0]).all()
    assert torch.equal(run(ops, case, cache, step).cpu(), expected)


@pytest.mark.parametrize(("name", "window"), [(None, None), ("fp8", 70)])
def test_bits_depend_on_the_sequence_alone(name: str | None, window: int | None) -> None:
    """Alone, in company and beside padding whose table is old, again and again: the same bits."""
    case = decodes(300, 1, 130, heads=4, kv_heads=2, padding=1, window=window, kv_format=name)
    ops = ops_of(torch.float32, 8)
    whole, cache = attend(ops, case)
    _, step = steps(case)
    step.inputs.block_table[3] = 1 << 20
    for _ in range(2):
        assert torch.equal(run(ops, case, cache, step)[:3].cpu(), whole)
    for number, (_, length) in enumerate(case.sequences):
        here = slice(number, number + 1)
        alone = dataclasses.replace(
            step,
            qkv=step.qkv[here],
            inputs=dataclasses.replace(
                step.inputs,
                positions=step.inputs.positions[here],
                slots=step.inputs.slots[here],
                block_table=step.inputs.block_table[here],
                query_start=torch.tensor([0, 1], dtype=torch.int32),
                kv_len=torch.tensor([length], dtype=torch.int32),
                max_kv_len=length,
            ),
        )
        assert torch.equal(run(ops, case, cache, alone).cpu(), whole[here])


@pytest.mark.parametrize(
    ("case", "fits"),
    [
        (decodes(5, 5, 5, 5), True),
        (decodes(5, 5, 5, padding=1), True),
        (decodes(5, 5, 5, 5, padding=1), False),
        (decodes(5, heads=17, kv_heads=1), False),
        (Case(((1, 5), (2, 5))), False),
        (Case(((0, 5), (2, 5))), False),
        (Case(((1, 5), (0, 5), (1, 9))), False),
    ],
    ids=str,
)
def test_which_steps_it_takes(case: Case, fits: bool) -> None:
    _, step = steps(case)
    assert attention_spread.can_spread(len(step.qkv), case.layout, step.inputs) is fits


@pytest.mark.parametrize(
    ("kv_heads", "multiprocessors", "splits"),
    [(8, 132, 16), (1, 132, 32), (2, 132, 32), (4, 132, 32), (32, 132, 4), (8, 108, 16), (8, 3, 1)],
)
def test_splits_fill_the_device(kv_heads: int, multiprocessors: int, splits: int) -> None:
    tiling = spread_tiling(QKVLayout(32, kv_heads, 128), 2, multiprocessors)
    assert tiling == SpreadTiling(splits=splits, tile=64, warps=4, stages=3)


def module_with(
    change: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """`attention_spread` with one piece of its text changed."""
    source = Path(attention_spread.__file__).read_text()
    assert source.count(change[0]) == 1
    path = folder / "attention_spread_changed.py"
    path.write_text(source.replace(*change))
    spec = importlib.util.spec_from_file_location("attention_spread_changed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


PARTS = "parts = tl.minimum(tiles, SPLITS)"
SAME = ("MOST_SPLITS = 32", "MOST_SPLITS = 32")


@pytest.mark.parametrize(
    ("change", "is_right"),
    [
        (SAME, True),
        ((PARTS, "parts = tl.full([], SPLITS, tl.int32)"), False),  # splits without a tile never come
        ((PARTS, "parts = tiles"), False),  # a split leaves one part, however many tiles it has
        (("== parts - 1", "== parts - 2"), False),  # joined before the last has come
        (("tl.store(arrivals + pair, 0)", "pass"), False),  # the next layer finds its counter spent
    ],
    ids=["same", "all splits", "all tiles", "too early", "not reset"],
)  # fmt: skip
def test_joins_when_all_that_come_have_come(
    change: tuple[str, str], is_right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two splits of the shorter have a tile, those of the longer several; what nobody writes is NaN."""
    changed = module_with(change, tmp_path, monkeypatch)
    case = decodes(300, 60, heads=2, kv_heads=1)
    ops = ops_of(torch.float32)
    expected, _ = attend(ReferenceOps(torch.float32, CPU), case)
    _, cache = attend(ops, case)
    step = steps(case)[1].to(DEVICE, torch.float32)
    q = rotate_and_store(ops, case, cache, step)
    tiling = SpreadTiling(splits=4, tile=32, warps=4, stages=1)
    scratch = spread_scratch(tiling, case.layout, DEVICE)
    for memory in (scratch.partial, scratch.high, scratch.total):
        memory.fill_(float("nan"))
    got = []
    for _ in range(2):
        out = torch.full_like(q, float("nan"))
        changed.attend_spread(
            q, out, case.layout, cache, step.inputs, scale=case.dim**-0.5, window=None, softcap=None,
            rounded=None, tiling=tiling, scratch=scratch,
        )  # fmt: skip
        got.append(out.cpu())
    near = all(torch.allclose(one, expected, atol=1e-3) for one in got)
    assert (near and not scratch.arrivals.any()) is is_right
