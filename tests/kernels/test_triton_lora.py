"""The gathered low-rank kernels in Triton against the merged matrix: few tokens, tiles, and slots that alternate."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.gpu_cases import DEVICE, DTYPES, INTERPRETER_WARNINGS
from tests.kernels.test_lora import CASES, Case, Given, given, merged

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.ops import LowRankFactors  # isort: skip
from nonet.kernels.triton.lora import FEW_TOKENS, add_low_rank  # isort: skip  (after the interpreter is chosen)

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
MANY = [
    Case((0,) * 5 + (2,) * (FEW_TOKENS + 3), inputs=130, outputs=(72, 24, 24)),
    Case((1, 2, 3, 0) * 40, inputs=64, outputs=(40, 40), rank=16),
    Case((3,) * 140 + (1,) * 60, inputs=600, outputs=(50,), rank=8),
    Case((0,) * (FEW_TOKENS + 1)),
]


def found(made: Given, dtype: torch.dtype) -> torch.Tensor:
    factors = made.factors
    mine = LowRankFactors(
        factors.first.to(DEVICE, dtype), factors.second.to(DEVICE, dtype), factors.ends
    )
    out = made.out.to(DEVICE, dtype, copy=True)
    returned = add_low_rank(out, made.x.to(DEVICE, dtype), mine, made.slots.to(DEVICE))
    assert returned is out
    return out.cpu()


@pytest.mark.parametrize("case", [*CASES, *MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_equal_the_merged_matrix(case: Case, dtype: torch.dtype) -> None:
    made = given(case, dtype)
    out, wanted = found(made, dtype), merged(made)
    assert (out.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1) < LIMIT[dtype]
    untouched = made.slots == 0
    assert torch.equal(out[untouched].float(), made.out[untouched].to(dtype).float())


def test_few_tokens_do_not_depend_on_each_other() -> None:
    made = given(CASES[2], torch.float32)
    whole = found(made, torch.float32)
    for row in range(len(made.slots)):
        one = slice(row, row + 1)
        alone = Given(made.x[one], made.out[one].clone(), made.factors, made.slots[one])
        assert torch.equal(found(alone, torch.float32), whole[one])
