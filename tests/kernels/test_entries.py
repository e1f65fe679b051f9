"""Entries by slot: what was stored is read back, and copies move single heads without touching anything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nonet.kernels.entries import EntryView
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.ops import LayerCache, Ops
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS
from tests.kernels.native_cases import Case, history, no_rotation

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


def filled(ops: Ops) -> tuple[LayerCache, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cache that holds one sequence, its slots, and the keys and values [75, K, D] that were stored."""
    past = history(CASE)
    qkv, inputs = past.inputs([(0, 75)])
    cache = ops.allocate_cache(CASE.num_blocks, CASE.block_size, CASE.kv_heads, CASE.dim)
    moved = {name: getattr(inputs, name).to(ops.device) for name in inputs.__slots__[:5]}
    ops.rope_store(
        qkv.to(ops.device, copy=True),
        CASE.layout,
        no_rotation(CASE).to(ops.device),
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
    keys, values = ops.gather_entries(cache, slots[order])
    assert keys.dtype == values.dtype == torch.float32
    assert torch.equal(keys, k[order])
    assert torch.equal(values, v[order])


def test_copies_move_each_head_from_its_own_slot(ops: Ops) -> None:
    """Targets overlap sources; entries that are no targets stay as they were."""
    cache, slots, k, v = filled(ops)
    generator = torch.Generator().manual_seed(2)
    chosen = torch.stack([torch.randperm(75, generator=generator)[:40] for _ in range(2)], 1)
    ops.copy_entries(cache, slots[chosen.to(ops.device)], slots[:40])
    keys, values = ops.gather_entries(cache, slots)
    for head in range(2):
        assert torch.equal(keys[:40, head], k[chosen[:, head], head])
        assert torch.equal(values[:40, head], v[chosen[:, head], head])
    assert torch.equal(keys[40:], k[40:])
    assert torch.equal(values[40:], v[40:])


def test_a_copy_that_mixes_heads_is_seen(ops: Ops) -> None:
    """The comparison above must fail for an implementation that takes the first head's choice for all."""
    cache, slots, k, _ = filled(ops)
    chosen = torch.stack([torch.arange(40), torch.arange(40, 0, -1)], 1)
    mutant = chosen[:, :1].expand(-1, 2)
    ops.copy_entries(cache, slots[mutant.to(ops.device)], slots[:40])
    keys, _ = ops.gather_entries(cache, slots)
    assert not torch.equal(keys[:40, 1], k[chosen[:, 1], 1])


def test_offsets_may_be_spread_over_axes() -> None:
    """Offset o of a block of 6 lies at (o // 3, o % 3)."""
    view = EntryView(torch.arange(24).view(2, 2, 3, 2), num_offset_axes=2)
    slots = torch.tensor([0, 4, 11])
    assert view.read(slots).tolist() == [[0, 1], [8, 9], [22, 23]]
    view.write(slots[:1], torch.tensor([[-1, -2]]))
    assert view.memory[0, 0, 0].tolist() == [-1, -2]
    assert view.read_heads(torch.tensor([[4, 11]])).tolist() == [[8, 23]]
