"""The gathered low-rank kernels in Triton against the merged matrix: few tokens, tiles, and slots that alternate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.kernels.gpu_cases import DEVICE, DTYPES, INTERPRETER_WARNINGS
from tests.kernels.test_lora import CASES, LOWER, Case, Given, Ranks, add, filled_up, given, merged

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.ops import LowRankFactors, StepShape  # isort: skip
from nonet.kernels.triton.lora import FEW_TOKENS  # isort: skip  (after the interpreter is chosen)
from nonet.kernels.triton.ops import TritonOps  # isort: skip
from nonet.lora.layers import AdaptedLinear, LoraOps  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
MANY = [
    Case((0,) * 5 + (2,) * (FEW_TOKENS + 3), inputs=130, outputs=(72, 24, 24)),
    Case((1, 2, 3, 0) * 40, inputs=64, outputs=(40, 40), rank=16),
    Case((3,) * 140 + (1,) * 60, inputs=600, outputs=(50,), rank=8),
    Case((0,) * (FEW_TOKENS + 1)),
]
LOWER_MANY: list[tuple[Case, Ranks]] = [
    (MANY[0], ((4, 4, 4), (4, 0, 2), (1, 1, 1))),
    (MANY[1], ((16, 5), (0, 16), (0, 0))),
    (MANY[2], ((3,), (8,), (0,))),
]


def found(made: Given, dtype: torch.dtype) -> torch.Tensor:
    factors = made.factors
    mine = LowRankFactors(
        factors.first.to(DEVICE, dtype),
        factors.second.to(DEVICE, dtype),
        factors.ends,
        None if factors.ranks is None else factors.ranks.to(DEVICE),
    )
    out = made.out.to(DEVICE, dtype, copy=True)
    ops = TritonOps(dtype, DEVICE)
    returned = add(ops, out, made.x.to(DEVICE, dtype), mine, made.slots.to(DEVICE))
    assert returned is out
    return out.cpu()


def error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((out.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1))


@pytest.mark.parametrize("case", [*CASES, *MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_equal_the_merged_matrix(case: Case, dtype: torch.dtype) -> None:
    made = given(case, dtype)
    out = found(made, dtype)
    assert error(out, merged(made)) < LIMIT[dtype]
    untouched = made.slots == 0
    assert torch.equal(out[untouched].float(), made.out[untouched].to(dtype).float())


def test_few_tokens_do_not_depend_on_each_other() -> None:
    made = given(CASES[2], torch.float32)
    whole = found(made, torch.float32)
    for row in range(len(made.slots)):
        one = slice(row, row + 1)
        alone = Given(made.x[one], made.out[one].clone(), made.factors, made.slots[one])
        assert torch.equal(found(alone, torch.float32), whole[one])


@pytest.fixture
def new_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("new_memory_is_nan")
@pytest.mark.parametrize(("case", "ranks"), [*LOWER, *LOWER_MANY])
@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
def test_filler_is_not_read(case: Case, ranks: Ranks, dtype: torch.dtype) -> None:
    """It is not a number; the bits are those of filler of zeros that is read. Parts of rank 0 keep their bits."""
    made = given(case, dtype)
    zeros = filled_up(made, ranks, 0.0)
    out = found(filled_up(made, ranks, torch.nan), dtype)
    assert error(out, merged(zeros)) < LIMIT[dtype]
    unsaid = LowRankFactors(zeros.factors.first, zeros.factors.second, zeros.factors.ends)
    assert torch.equal(out, found(replace(zeros, factors=unsaid), dtype))
    before = made.out.to(dtype)
    for row, slot in enumerate(made.slots.tolist()):
        start = 0
        for end, used in zip(made.factors.ends, ranks[slot - 1], strict=True):
            if slot and not used:
                assert torch.equal(out[row, start:end], before[row, start:end])
            start = end


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
@pytest.mark.parametrize("tokens", [32, FEW_TOKENS + 72])
@pytest.mark.parametrize("is_float8", [False, True], ids=["bf16", "fp8"])
def test_a_graph_equals_eager_steps(is_float8: bool, tokens: int) -> None:
    """There the first product runs beside the base one; layer after layer, as a missing wait would show."""
    width, num_slots = 2048, 5
    ops = TritonOps(torch.bfloat16, DEVICE)
    lora = LoraOps(ops)
    pack = ops.pack_float8 if is_float8 else ops.pack

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * width**-0.5

    linears = [
        AdaptedLinear(
            pack(drawn(width, width)),
            LowRankFactors(
                drawn(num_slots, 16, width) * 8,
                drawn(num_slots, 16, width) * 8,
                (width,),
                torch.tensor([[16], [0], [8], [16], [3]], dtype=torch.int32, device=DEVICE),
            ),
        )
        for _ in range(6)
    ]
    lora.touched.update(linears)
    lora.rows.slots = torch.zeros(tokens, dtype=torch.int32, device=DEVICE)
    x = drawn(tokens, width)
    scale = torch.ones(width, device=DEVICE)

    def forward(shape: StepShape) -> torch.Tensor:
        hidden = x[: shape.num_tokens]
        for linear in linears:
            hidden = lora.rms_norm(lora.linear(hidden, linear), scale, 1e-6)
        return hidden.float()

    shape = StepShape(tokens, tokens, tokens, 1)
    recording = lora.record(forward, shape)
    assert recording is not None
    different = 0
    for turn in range(8):
        x.normal_()
        lora.rows.slots.random_(0, num_slots + 1)
        lora.rows.in_use = turn % 4 != 3
        got = recording.replay(shape).clone()
        assert torch.isfinite(got).all()
        assert got.equal(forward(shape))
        lora.rows.in_use = False
        different += int(not got.equal(forward(shape)))
    assert different == 6, "steps with an adapter, and no others, are told from the base model's"
    assert recording.num_replays == 6, "all but the first step of each kind"
