"""Low-rank additions by slot: every implementation against the merged matrix, row by row, and what mutants would do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nonet.kernels.native import NativeOps, NativeRecording, native_available
from nonet.kernels.ops import LowRankFactors, Ops, StepShape
from nonet.kernels.padded.ops import PaddedOps
from nonet.kernels.reference.ops import ReferenceOps

CPU = torch.device("cpu")
LIMIT = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Case:
    """A layer of stacked matrices, and the slot of each row."""

    slots: tuple[int, ...]
    inputs: int = 48
    outputs: tuple[int, ...] = (32, 16, 16)
    rank: int = 4
    num_slots: int = 3


CASES = [
    Case((0,)),
    Case((2,)),
    Case((0, 1, 2, 3, 0, 3)),
    Case((1,) * 9 + (0,) * 3 + (3,) * 21 + (1, 2, 3) * 5),
    Case((3, 3, 3, 1), inputs=33, outputs=(19,), rank=1),
    Case((2, 2, 0, 1, 1), inputs=100, outputs=(600, 72), rank=16),
    Case((1, 2) * 40, inputs=64, outputs=(80,), rank=24),
]


@dataclass(frozen=True)
class Given:
    x: torch.Tensor
    out: torch.Tensor
    factors: LowRankFactors
    slots: torch.Tensor


def given(case: Case, dtype: torch.dtype, seed: int = 0) -> Given:
    """Numbers that bfloat16 holds exactly, so that rounding the inputs is no difference."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().float()

    tokens, columns = len(case.slots), sum(case.outputs)
    first = made(case.num_slots, len(case.outputs) * case.rank, case.inputs).to(dtype)
    second = made(case.num_slots, case.rank, columns).to(dtype)
    ends = tuple(sum(case.outputs[: part + 1]) for part in range(len(case.outputs)))
    slots = torch.tensor(case.slots, dtype=torch.int32)
    factors = LowRankFactors(first, second, ends)
    return Given(made(tokens, case.inputs), made(tokens, columns), factors, slots)


def merged(made: Given) -> torch.Tensor:
    """Each row by the whole matrix of its slot, in float64: what a merged checkpoint would compute."""
    factors, rank = made.factors, made.factors.rank
    rows = []
    for x, out, slot in zip(made.x.double(), made.out.double(), made.slots.tolist(), strict=True):
        if slot:
            first, second = factors.first[slot - 1].double(), factors.second[slot - 1].double()
            matrix = torch.zeros(out.shape[0], x.shape[0], dtype=torch.float64)
            start = 0
            for part, end in enumerate(factors.ends):
                matrix[start:end] = second[:, start:end].T @ first[part * rank : (part + 1) * rank]
                start = end
            out = out + matrix @ x
        rows.append(out)
    return torch.stack(rows)


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    scale = wanted.abs().max().clamp(min=1)
    return bool(((found.double() - wanted).abs().max() / scale) < LIMIT[dtype])


@pytest.fixture(params=["reference", "padded", "native"])
def implementation(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and not native_available()[0]:
        pytest.skip(native_available()[1])
    return str(request.param)


def ops_of(name: str, dtype: torch.dtype, threads: int = 2) -> Ops:
    if name == "native":
        return NativeOps(dtype, threads)
    return PaddedOps(dtype, CPU) if name == "padded" else ReferenceOps(dtype, CPU)


def add(
    ops: Ops,
    out: torch.Tensor,
    x: torch.Tensor,
    factors: LowRankFactors,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Both products."""
    sum_: torch.Tensor = ops.lora_add(out, ops.lora_inner(x, factors, slots), factors, slots)
    return sum_


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_equal_the_merged_matrix(implementation: str, case: Case, dtype: torch.dtype) -> None:
    ops, made = ops_of(implementation, dtype), given(case, dtype)
    kept = torch.float32 if implementation == "native" else dtype
    x, out = made.x.to(kept), made.out.to(kept, copy=True)
    returned = add(ops, out, x, made.factors, made.slots)
    assert returned is out, "the addition is in place"
    assert close(out, merged(made), dtype)
    untouched = made.slots == 0
    assert torch.equal(out[untouched].float(), made.out[untouched])


class Asked(TorchDispatchMode):
    """Operations whose result's size or value the host has to know: none may be in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if str(func.overloadpacket.__name__) in ("_local_scalar_dense", "nonzero", "_unique2"):
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_padded_additions_never_ask_the_device() -> None:
    """They are captured with the decode step; those of the reference, which could not be, are seen to ask."""
    made = given(CASES[2], torch.float32)
    asked = {}
    for name in ("padded", "reference"):
        with Asked() as watched:
            add(ops_of(name, torch.float32), made.out.clone(), made.x, made.factors, made.slots)
        asked[name] = watched.names
    assert not asked["padded"]
    assert asked["reference"]


def test_the_comparison_sees_mutants() -> None:
    """Another slot's factors, and two parts in each other's place."""
    made = given(CASES[2], torch.float32)
    wanted = merged(made)
    factors, rank = made.factors, made.factors.rank
    other_slot = LowRankFactors(factors.first.roll(1, 0), factors.second, factors.ends)
    parts = factors.first.clone()
    parts[:, rank : 2 * rank], parts[:, 2 * rank :] = (
        factors.first[:, 2 * rank :],
        factors.first[:, rank : 2 * rank],
    )
    swapped = LowRankFactors(parts, factors.second, factors.ends)
    ops = ReferenceOps(torch.float32, CPU)
    for mutant in (other_slot, swapped):
        assert not close(
            add(ops, made.out.clone(), made.x, mutant, made.slots), wanted, torch.float32
        )


Ranks = tuple[tuple[int, ...], ...]

# Terms of each slot's parts: all, some, none; more than a tile of terms, and rows that share a slot.
LOWER: list[tuple[Case, Ranks]] = [
    (CASES[3], ((4, 0, 1), (0, 0, 0), (3, 4, 2))),
    (CASES[5], ((16, 5), (0, 16), (16, 16))),
    (CASES[6], ((19,), (7,), (0,))),
]


def filled_up(made: Given, ranks: Ranks, junk: float) -> Given:
    """The factors with filler of `junk` where they are of lower rank, and the ranks that say so."""
    rank, ends = made.factors.rank, made.factors.ends
    first, second = made.factors.first.clone(), made.factors.second.clone()
    for slot, of_parts in enumerate(ranks):
        for part, used in enumerate(of_parts):
            start = ends[part - 1] if part else 0
            first[slot, part * rank + used : (part + 1) * rank] = junk
            second[slot, used:, start : ends[part]] = junk
    said = torch.tensor(ranks, dtype=torch.int32)
    return replace(made, factors=LowRankFactors(first, second, ends, said))


@pytest.mark.parametrize(("case", "ranks"), LOWER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filler_is_not_read(
    implementation: str, case: Case, ranks: Ranks, dtype: torch.dtype
) -> None:
    """Where ranks say that rows of the factors are filler: the native kernel does not notice what lies there."""
    made = given(case, dtype)
    junk = torch.nan if implementation == "native" else 0.0
    factors = filled_up(made, ranks, junk).factors
    kept = torch.float32 if implementation == "native" else dtype
    ops = ops_of(implementation, dtype)
    found = add(ops, made.out.to(kept, copy=True), made.x.to(kept), factors, made.slots)
    assert close(found, merged(filled_up(made, ranks, 0.0)), dtype)


@pytest.mark.skipif(not native_available()[0], reason=native_available()[1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_rows_have_the_same_bits_in_every_step(dtype: torch.dtype) -> None:
    made = given(CASES[3], dtype)
    whole = add(NativeOps(dtype, 3), made.out.clone(), made.x, made.factors, made.slots)
    alone = NativeOps(dtype, 1)
    for row in range(len(made.slots)):
        one = slice(row, row + 1)
        x = made.x[one].contiguous()
        found = add(alone, made.out[one].clone(), x, made.factors, made.slots[one])
        assert torch.equal(found, whole[one])


@pytest.mark.skipif(not native_available()[0], reason=native_available()[1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_records_it(dtype: torch.dtype) -> None:
    """Behind a gated activation, which must not move into the linear layer: the addition reads it too."""
    case = Case((0,) * 40, inputs=64, outputs=(48,))
    ops, made = NativeOps(dtype, 2), given(case, dtype)
    weight = ops.pack(torch.randn(48, 64))
    buffer = torch.zeros(40, 128)
    slots = torch.zeros(40, dtype=torch.int32)
    ids = torch.arange(40, dtype=torch.int32)

    def forward(live: int) -> torch.Tensor:
        gated = ops.gated(ops.gather_rows(buffer, ids[:live]), "silu")
        inner = ops.lora_inner(gated, made.factors, slots[:live])
        sum_: torch.Tensor = ops.lora_add(
            ops.linear(gated, weight), inner, made.factors, slots[:live]
        )
        return sum_

    recording = ops.record(lambda shape: forward(shape.num_rows), StepShape(40, 1, 40, 40))
    assert isinstance(recording, NativeRecording)
    for live in (1, 2, 7, 40):
        buffer.normal_()
        slots[:] = torch.randint(0, 4, (40,))
        assert torch.equal(recording.replay(StepShape(live, 1, live, live)), forward(live))
