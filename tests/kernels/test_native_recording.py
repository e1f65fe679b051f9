"""One recording on the largest buffers serves every step: bit-equal to running the operations one by one."""

from __future__ import annotations

import gc
import os
import threading

import pytest
import torch

from nonet.core.errors import ConfigError
from nonet.kernels.native import NativeOps, NativeRecording, native_available, time_program
from nonet.kernels.native.memory import Arena
from nonet.kernels.ops import Activation, StepShape
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.native_stack import TINY, Buffers, Stack

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])

# Prefill, mixed, decode, a lone decode, a chunk: spans [start, stop) of each sequence.
STEPS = [
    [(0, 40)],
    [(40, 41), (0, 17)],
    [(41, 42), (17, 18), (0, 3)],
    [(42, 43)],
    [(43, 60), (18, 19)],
]


LARGEST = StepShape(64, 4, 4, 64)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def run(dtype: torch.dtype, recorded: bool, reference: bool = False) -> list[torch.Tensor]:
    ops = ReferenceOps(dtype, torch.device("cpu")) if reference else NativeOps(dtype, 2)
    stack = Stack(ops, TINY, 32)
    buffers = Buffers.make(64, 4, 4, 6)
    generator = torch.Generator().manual_seed(1)
    recording = ops.record(lambda _: stack.forward(buffers), LARGEST) if recorded else None
    results = []
    for spans in STEPS:
        tokens = buffers.fill(spans, stack.block_size, generator)
        if recording is not None:
            results.append(
                recording.replay(StepShape(tokens, len(spans), len(spans), tokens)).clone()
            )
        else:
            results.append(stack.forward(buffers.live(tokens, len(spans))))
    return results


def test_replay_equals_eager(dtype: torch.dtype) -> None:
    for replayed, eager in zip(run(dtype, True), run(dtype, False), strict=True):
        assert torch.equal(replayed, eager)


def test_a_whole_stack_agrees_with_the_reference() -> None:
    for native, reference in zip(
        run(torch.float32, True), run(torch.float32, False, reference=True), strict=True
    ):
        torch.testing.assert_close(native, reference, atol=1e-4, rtol=1e-4)


def test_memory_of_intermediates_does_not_grow_with_depth() -> None:
    deep = TINY.__class__(*(6, *[getattr(TINY, name) for name in TINY.__slots__[1:]]))
    sizes = []
    for shape in (TINY, deep):
        ops = NativeOps(torch.float32, 1)
        stack = Stack(ops, shape, 32)
        buffers = Buffers.make(64, 4, 4, 6)
        recording = ops.record(
            lambda _, stack=stack, buffers=buffers: stack.forward(buffers), LARGEST
        )
        assert isinstance(recording, NativeRecording)
        sizes.append(recording.arena_bytes)
    assert sizes[0] == sizes[1]


def test_arena_keeps_what_a_view_still_needs() -> None:
    arena = Arena()
    first = arena.empty(4, 8, 0)
    address, view = first.data_ptr(), first[2:]
    del first
    gc.collect()
    second = arena.empty(4, 8, 0)
    assert second.data_ptr() != address
    del view
    gc.collect()
    assert arena.empty(4, 8, 0).data_ptr() == address


def test_time_program_names_every_operation() -> None:
    ops = NativeOps(torch.float32, 2)
    stack = Stack(ops, TINY, 32)
    buffers = Buffers.make(64, 4, 4, 6)
    recording = ops.record(lambda _: stack.forward(buffers), LARGEST)
    assert isinstance(recording, NativeRecording)
    tokens = buffers.fill(STEPS[0], 16, torch.Generator().manual_seed(0))
    table = time_program(recording, StepShape(tokens, 1, 1, tokens))
    assert table.keys() == {
        "add_rms_norm", "attention", "embed", "gather_rows", "linear", "logits", "rms_norm", "rope_store",
    }  # fmt: skip
    assert all(seconds > 0 for seconds in table.values())


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_gating_moves_into_the_linear_layer_only_where_nobody_else_reads_it(
    activation: Activation, rows: int, dtype: torch.dtype
) -> None:
    ops = NativeOps(dtype, 2)
    down, x = ops.pack(torch.randn(48, 80)), torch.randn(64, 160)
    ids = torch.arange(64, dtype=torch.int32)

    def once(x: torch.Tensor) -> torch.Tensor:
        return ops.linear(ops.gated(ops.gather_rows(x, ids), activation), down)

    def twice(x: torch.Tensor) -> torch.Tensor:
        gated = ops.gated(ops.gather_rows(x, ids), activation)
        ops.linear(gated, down)
        return ops.linear(gated, down)

    for forward, labels in ((once, 2), (twice, 4)):
        recording = ops.record(lambda _, forward=forward: forward(x), StepShape(64, 1, 64, 64))
        assert isinstance(recording, NativeRecording)
        assert len(recording.labels) == labels
        assert torch.equal(recording.replay(StepShape(rows, 1, rows, rows)), once(x)[:rows])


def test_programs_from_two_python_threads_take_turns() -> None:
    ops = NativeOps(torch.float32, 2)
    weight, x = ops.pack(torch.randn(64, 64)), torch.randn(5, 64)
    expected = ops.linear(x, weight)
    wrong = []

    def repeat() -> None:
        for _ in range(200):
            if not torch.equal(ops.linear(x, weight), expected):
                wrong.append(1)

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_makes_its_own_team() -> None:
    ops = NativeOps(torch.float32, 2)
    weight, x = ops.pack(torch.eye(32)), torch.randn(3, 32)
    assert torch.equal(ops.linear(x, weight), x)
    child = os.fork()
    if child == 0:
        good = torch.equal(ops.linear(x, weight), x)
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_float16_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"float32 or bfloat16, not torch.float16"):
        NativeOps(torch.float16, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        NativeOps(torch.float32, 0)


def test_cache_shapes_that_the_layout_cannot_hold_are_refused() -> None:
    ops = NativeOps(torch.float32, 1)
    for block_size, dim in ((8, 64), (16, 72), (16, 512)):
        with pytest.raises(ConfigError, match="multiple of 16"):
            ops.allocate_cache(4, block_size, 1, dim)


def test_caches_are_zeroed_and_as_large_as_planned(dtype: torch.dtype) -> None:
    ops = NativeOps(dtype, 1)
    cache = ops.allocate_cache(5, 32, 3, 64)
    assert not cache.keys.any()
    assert not cache.values.any()
    assert cache.keys.nbytes + cache.values.nbytes == 5 * 2 * 32 * 3 * 64 * dtype.itemsize
