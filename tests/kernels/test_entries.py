"""Entries by slot: what was stored is read back, and copies move single heads without touching anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nonet.kernels.entries import EntryView
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.ops import LayerCache, Ops
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS
from tests.kernels.native_cases import Case, history, no_rotation
from tests.kernels.stored_entries import entries_of

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
CPU = torch.device("cpu")
CASE = Case(((1, 75),), heads=4, kv_heads=2, dim=32, block_size=32)


def reference() -> Ops:
    return ReferenceOps(torch.float32, CPU)


def native(dtype: torch.dtype) -> Ops:
    if not native_available()[0]:
        pytest.skip(native_available()[1])
    return NativeOps(dtype, threads=2)


def triton() -> Ops:
    pytest.importorskip("triton", reason="triton is not installed")
    from nonet.kernels.triton.ops import TritonOps

    return TritonOps(torch.float32, DEVICE)


MAKERS: dict[str, Callable[[], Ops]] = {
    "reference": reference,
    "native-f32": lambda: native(torch.float32),
    "native-bf16": lambda: native(torch.bfloat16),
    "triton": triton,
}


@pytest.fixture(params=MAKERS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return MAKERS[request.param]()


def filled(
    ops: Ops, case: Case = CASE
) -> tuple[LayerCache, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cache that holds one sequence, its slots, and the keys and values [75, K, D] that were stored."""
    past = history(case)
    qkv, inputs = past.inputs([(0, 75)])
    cache = ops.allocate_cache(
        case.num_blocks, case.block_size, case.kv_heads, case.dim, case.format
    )
    moved = {name: getattr(inputs, name).to(ops.device) for name in inputs.__slots__[:5]}
    ops.rope_store(
        qkv.to(ops.device, copy=True),
        case.layout,
        no_rotation(case).to(ops.device),
        cache,
        type(inputs)(**moved, max_query_len=75, max_kv_len=75),
        None,
        None,
        1e-6,
    )
    _, k, v = qkv.view(75, -1, CASE.dim).split([CASE.heads, CASE.kv_heads, CASE.kv_heads], dim=1)
    return cache, inputs.slots.long().to(ops.device), k.to(ops.device), v.to(ops.device)


def test_what_was_stored_is_read_back(ops: Ops) -> None:
    cache, slots, k, v = filled(ops)
    order = torch.randperm(75, generator=torch.Generator().manual_seed(1)).to(ops.device)
    keys, values = entries_of(ops, cache, slots[order])
    assert torch.equal(keys, k[order])
    assert torch.equal(values, v[order])


def test_blocks_are_read_in_the_order_asked_for_as_they_are_stored(ops: Ops) -> None:
    cache, slots, k, v = filled(ops)
    blocks = slots[::32] // 32
    for read, wanted in ((ops.read_keys, k), (ops.read_values, v)):
        found = read([cache, cache], blocks.flip(0))
        assert found.shape == (2, 2, 96, 32)
        assert found.dtype == cache.keys.dtype
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[1, :, :11].float(), wanted[64:].transpose(0, 1))
        assert torch.equal(found[1, :, 64:].float(), wanted[:32].transpose(0, 1))


def test_copies_move_each_head_from_its_own_slot(ops: Ops) -> None:
    """Targets overlap sources; entries that are no targets stay as they were."""
    caches = [filled(ops) for _ in range(2)]
    slots = caches[0][1]
    generator = torch.Generator().manual_seed(2)
    chosen = torch.stack([torch.randperm(75, generator=generator)[:40] for _ in range(4)])
    chosen = chosen.view(2, 2, 40).to(ops.device)
    ops.copy_entries([cache for cache, *_ in caches], slots[chosen], slots[:40])
    for number, (cache, _, k, v) in enumerate(caches):
        keys, values = entries_of(ops, cache, slots)
        for head in range(2):
            assert torch.equal(keys[:40, head], k[chosen[number, head], head])
            assert torch.equal(values[:40, head], v[chosen[number, head], head])
        assert torch.equal(keys[40:], k[40:])
        assert torch.equal(values[40:], v[40:])


@pytest.mark.parametrize("mutant", ["of another head", "of another cache"])
def test_a_copy_that_mixes_up_is_seen(ops: Ops, mutant: str) -> None:
    """The comparison above must fail for an implementation that takes one choice for all heads, or for all caches."""
    caches = [filled(ops) for _ in range(2)]
    slots, k = caches[1][1:3]
    up, down = torch.arange(40), torch.arange(40, 0, -1)
    chosen = torch.stack((up, up, up, down)).view(2, 2, 40).to(ops.device)
    given = chosen[:, :1] if mutant == "of another head" else chosen[:1]
    ops.copy_entries([cache for cache, *_ in caches], slots[given.expand(2, 2, -1)], slots[:40])
    keys, _ = entries_of(ops, caches[1][0], slots)
    assert not torch.equal(keys[:40, 1], k[chosen[1, 1], 1])


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("maker", MAKERS)
def test_entries_of_a_format_move_with_their_scales(maker: str, name: str) -> None:
    ops = MAKERS[maker]()
    case = replace(CASE, kv_format=name)
    cache = filled(ops, case)[0]
    slots = filled(ops, case)[1]
    keys, values = entries_of(ops, cache, slots)
    chosen = torch.stack((torch.arange(74, 34, -1), torch.arange(40))).to(ops.device)
    ops.copy_entries([cache], slots[chosen][None], slots[:40])
    moved = entries_of(ops, cache, slots)
    for found, before in zip(moved, (keys, values), strict=True):
        assert found.dtype == torch.float32
        for head in range(2):
            assert torch.equal(found[:40, head], before[chosen[head], head])


def test_offsets_may_be_spread_over_axes() -> None:
    """Offset o of a block of 6 lies at (o // 3, o % 3)."""
    view = EntryView(torch.arange(24).view(2, 2, 3, 2), num_offset_axes=2)
    slots = torch.tensor([0, 4, 11])
    assert view.read(slots).tolist() == [[0, 1], [8, 9], [22, 23]]
    view.write(slots[:1], torch.tensor([[-1, -2]]))
    assert view.memory[0, 0, 0].tolist() == [-1, -2]
    out = torch.empty(2, 1, 2, 3, dtype=torch.int64)
    view.read_blocks(torch.tensor([1]), out)
    assert out.tolist() == [[[[12, 14, 16], [18, 20, 22]]], [[[13, 15, 17], [19, 21, 23]]]]
