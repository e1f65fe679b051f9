"""Every kernel benchmark at tiny sizes on the CPU, what it counts by hand, and how a failure is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.kernels.stored_entries import entries_of

from nonet.bench.device.ceilings import Ceilings, Sizes, measure_ceilings
from nonet.bench.device.kernels import KERNEL_BENCHES, attention, linear, rowwise, sampling
from nonet.bench.device.kernels.inputs import paged
from nonet.bench.device.kernels.problem import Bench, Problem, measure
from nonet.bench.device.timing import WORKING_SET_BYTES, copies_for, median_seconds
from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.engine.assemble import make_ops
from nonet.kernels.reference.ops import ReferenceOps
from nonet.kv.format import KV_FORMATS

CPU = torch.device("cpu")
SPEC = ModelSpec(
    family="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    norm_eps=1e-5,
    rope=RopeSpec(1e4),
)
CEILINGS = Ceilings(
    copy_bytes_per_s=2e9,
    sum_bytes_per_s=1e9,
    flops_per_s={"float32": 4e9, "bfloat16": 1e9},
    sizes=Sizes(copy_bytes=1, product=1),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKING_SET_BYTES, "cpu", 1 << 12)
    monkeypatch.setitem(attention.DECODE, "cpu", [(2, 20)])
    monkeypatch.setitem(attention.PREFILL, "cpu", [(2, 12)])
    monkeypatch.setitem(linear.ROWS, "cpu", (3,))
    monkeypatch.setitem(linear.HEAD_ROWS, "cpu", (3,))
    monkeypatch.setitem(rowwise.TOKENS, "cpu", (5,))
    monkeypatch.setitem(sampling.ROWS, "cpu", (3,))


def bench(kv: str | None = None, formats: tuple[str, ...] = ("dense", "int8", "fp8")) -> Bench:
    return Bench(
        ops=ReferenceOps(torch.float32, CPU),
        spec=SPEC,
        weight_formats=formats,
        kv_format=None if kv is None else KV_FORMATS.build(kv),
        block_size=16,
    )


@pytest.mark.parametrize("kv", [None, "int8", "fp8"])
@pytest.mark.parametrize("kernel", KERNEL_BENCHES.names())
def test_every_kernel_is_measured(kernel: str, kv: str | None) -> None:
    here = bench(kv)
    problems = list(KERNEL_BENCHES.load(kernel)(here))
    assert problems
    for problem in problems:
        measured = measure(kernel, problem, here, CEILINGS)
        assert measured.error is None
        assert measured.seconds is not None
        assert measured.seconds > 0
        assert measured.bandwidth_share == pytest.approx(problem.num_bytes / measured.seconds / 2e9)
        assert all(isinstance(one, float) for one in measured.rivals.values())


@pytest.mark.parametrize("kernel", KERNEL_BENCHES.names())
def test_kernels_whose_activations_are_wider_than_their_weights(kernel: str) -> None:
    here = Bench(
        ops=make_ops("native", "bfloat16", "cpu", 1), spec=replace(SPEC, head_dim=16),
        weight_formats=("dense", "int8"), kv_format=None, block_size=16,
    )  # fmt: skip
    try:
        for problem in KERNEL_BENCHES.load(kernel)(here):
            measured = measure(kernel, problem, here, CEILINGS)
            assert measured.error is None
            if kernel == "rms_norm":
                assert measured.num_bytes == 4 * 5 * 32 * 4
    finally:
        here.ops.close()


def test_counts_by_hand() -> None:
    here = bench()
    by_matrix = {
        (p.case["matrix"], p.case["weights"]): p for p in KERNEL_BENCHES.load("linear")(here)
    }
    down = by_matrix["down", "dense"]
    assert down.flops == 2 * 3 * 32 * 64
    assert down.num_bytes == 4 * (32 * 64 + 3 * (32 + 64))
    # The reference kernels make every format dense, so its bytes are those of the dense weight.
    assert by_matrix["down", "int8"].num_bytes == down.num_bytes
    assert by_matrix["qkv", "dense"].case["N"] == (4 + 2 * 2) * 8
    (decode,) = KERNEL_BENCHES.load("attention_decode")(here)
    assert decode.flops == 4 * 2 * 32 * 20
    assert decode.num_bytes == 2 * 20 * (2 * 2 * 8 * 4) + 2 * 2 * 32 * 4
    (prefill,) = KERNEL_BENCHES.load("attention_prefill")(here)
    assert prefill.flops == 4 * 2 * 32 * (12 * 13 // 2)
    (small,) = KERNEL_BENCHES.load("attention_decode")(bench("int8"))
    assert small.num_bytes < decode.num_bytes / 2


def test_rivals_compute_the_same() -> None:
    """Timing something else beside ours would be worthless: SDPA on the same numbers gives what ours gives."""
    here = bench()
    queries = length = 12
    problem = paged(here, batch=1, queries=queries, length=length, copies=1)
    q = here.random(queries, 32)
    ours = here.ops.attention(
        q, linear_layout(here), problem.cache, problem.inputs[0], scale=SPEC.scale, window=None, softcap=None
    )  # fmt: skip
    slots = problem.inputs[0].block_table[0].long().repeat_interleave(16) * 16
    slots = (slots + torch.arange(len(slots)) % 16)[:length]
    k, v = entries_of(here.ops, problem.cache, slots)
    theirs = attention._sdpa(attention.BACKENDS["cpu"]["math"])(
        q.view(queries, 4, 8).transpose(0, 1)[None],
        k.transpose(0, 1)[None].contiguous(),
        v.transpose(0, 1)[None].contiguous(),
    )
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs[0].transpose(0, 1).reshape(queries, 32))


def linear_layout(here: Bench) -> object:
    return rowwise.layout(here)


def test_writes_go_to_places_of_their_own() -> None:
    problem = paged(bench(), batch=2, queries=5, length=20, copies=3, stores=True)
    for one in problem.inputs:
        assert len(set(one.slots.tolist())) == 10
        assert min(one.slots.tolist()) >= 16  # block 0 is the null block
    tables = torch.cat([one.block_table.flatten() for one in problem.inputs])
    assert len(set(tables.tolist())) == 3 * 2 * 2  # no two copies share a block


def test_a_failure_is_a_row() -> None:
    def fail() -> list[object]:
        raise RuntimeError("no room\nat all")

    problem = Problem(case={"n": 1}, num_bytes=1, flops=1, make=fail, rivals={"other": fail})  # type: ignore[arg-type, dict-item]
    measured = measure("x", problem, bench(), CEILINGS)
    assert (measured.seconds, measured.error) == (None, "no room")
    assert measured.rivals == {"other": "no room"}


def test_the_median_is_of_one_call() -> None:
    called: list[int] = []
    calls = [lambda n=n: called.append(n) for n in range(3)]  # type: ignore[misc]
    assert median_seconds(calls, CPU, repeats=5) < 1e-3
    assert called == [0, 1, *([0, 1, 2] * 5)]
    assert copies_for(1 << 10, CPU) == 4
    assert copies_for(1 << 30, CPU) == 2


def test_ceilings_of_this_machine() -> None:
    found = measure_ceilings(CPU, Sizes(copy_bytes=1 << 16, product=32))
    assert set(found.flops_per_s) == {"float32", "bfloat16"}
    assert min(found.copy_bytes_per_s, found.sum_bytes_per_s, *found.flops_per_s.values()) > 0
    assert found.peak("float8") == max(found.flops_per_s.values())
    assert found.peak("float32") == found.flops_per_s["float32"]
