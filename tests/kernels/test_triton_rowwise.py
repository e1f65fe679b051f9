"""Norms, gated activations, row copies and the head in Triton against the reference."""

from __future__ import annotations

import pytest
import torch

from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.gpu_cases import DEVICE, DTYPES, INTERPRETER_WARNINGS, share_near

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter before triton is imported)
from nonet.kernels.triton.scaled import Scaled  # isort: skip
from nonet.kernels.triton.gated import gated  # isort: skip
from nonet.kernels.triton.quantize_rows import Rounded  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
LIMIT = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=DTYPES, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[TritonOps, ReferenceOps]:
    return TritonOps(request.param, DEVICE), ReferenceOps(request.param, DEVICE)


def values(ops: TritonOps, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(ops.device, ops.dtype)


def assert_near(ops: TritonOps, got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=LIMIT[ops.dtype], rtol=LIMIT[ops.dtype])


@pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 1), (3, 33), (5, 640), (2, 4096)])
def test_norms(both: tuple[TritonOps, ReferenceOps], tokens: int, width: int) -> None:
    ops, reference = both
    x, residual = values(ops, tokens, width), values(ops, tokens, width, seed=1)
    weight = torch.rand(width, device=ops.device) + 0.5
    assert_near(ops, ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    theirs = residual.clone()
    expected = reference.add_rms_norm(x, theirs, weight, 1e-5)
    assert_near(ops, ops.add_rms_norm(x, residual, weight, 1e-5), expected)
    assert torch.equal(residual, theirs), "the residual stream is rounded like torch's addition"


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("tokens", "width"), [(0, 8), (1, 1), (3, 77), (2, 2049)])
def test_gated(
    both: tuple[TritonOps, ReferenceOps], activation: str, tokens: int, width: int
) -> None:
    ops, reference = both
    x = values(ops, tokens, 2 * width) * 8
    assert_near(ops, ops.gated(x, activation), reference.gated(x, activation))


@pytest.mark.parametrize("scale", [1.0, 25.25])
def test_embedding_and_gather(both: tuple[TritonOps, ReferenceOps], scale: float) -> None:
    ops, reference = both
    table = values(ops, 50, 1100)
    rows = torch.tensor([3, 0, 49, 3], dtype=torch.int32, device=ops.device)
    got = ops.embed(rows, ops.pack(table), scale)
    assert torch.equal(got, reference.embed(rows, reference.pack(table), scale))
    assert torch.equal(ops.gather_rows(table, rows), table[rows.long()])
    assert ops.gather_rows(table, rows[:0]).shape == (0, 1100)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logits_are_float32(both: tuple[TritonOps, ReferenceOps], softcap: float | None) -> None:
    ops, _ = both
    x, head = values(ops, 3, 64), values(ops, 210, 64, seed=1)
    got = ops.logits(x, ops.pack(head), softcap)
    exact = x.double() @ head.double().t()
    exact = exact if softcap is None else softcap * torch.tanh(exact / softcap)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=2e-4, rtol=2e-4)


def test_linear_adds_its_bias(both: tuple[TritonOps, ReferenceOps]) -> None:
    ops, reference = both
    x, weight, bias = values(ops, 3, 64), values(ops, 40, 64, seed=1), values(ops, 40, seed=2)
    expected = reference.linear(x, reference.pack(weight, bias))
    assert_near(ops, ops.linear(x, ops.pack(weight, bias)), expected)


@pytest.mark.parametrize("tokens", [1, 5])
def test_scales_are_taken_in_on_the_way(both: tuple[TritonOps, ReferenceOps], tokens: int) -> None:
    """What follows a product that waits for its scales sees the scaled product."""
    ops, _ = both
    numbers = values(ops, tokens, 640)
    rows = torch.rand(tokens, 1, device=ops.device) + 0.5
    columns = torch.rand(640, device=ops.device) + 0.5
    exact = (numbers.float() * rows * columns).to(ops.dtype)
    weight = torch.rand(640, device=ops.device) + 0.5

    def waiting() -> Scaled:
        return Scaled(numbers.clone(), rows, columns)

    assert_near(ops, waiting().settle(), exact)
    assert_near(ops, ops.gated(waiting(), "silu"), ops.gated(exact, "silu"))
    assert_near(ops, ops.rms_norm(waiting(), weight, 1e-5), ops.rms_norm(exact, weight, 1e-5))
    first, second = values(ops, tokens, 640, seed=2), values(ops, tokens, 640, seed=2)
    assert_near(
        ops,
        ops.add_rms_norm(waiting(), first, weight, 1e-5),
        ops.add_rms_norm(exact, second, weight, 1e-5),
    )
    assert_near(ops, first, second)


@pytest.mark.parametrize("tokens", [1, 3])
def test_gates_round_groups_on_the_way(both: tuple[TritonOps, ReferenceOps], tokens: int) -> None:
    """A scale for each group of inputs, from the group's own largest number; 1,280 inputs end inside a program."""
    ops, _ = both
    wide = values(ops, tokens, 2560) * 3
    rounded = Rounded.empty(tokens, 1280, ops.device, 10)
    made = gated(wide, "silu", rounded)
    assert torch.equal(made, ops.gated(wide, "silu"))
    groups = made.float().view(tokens, 10, 128)
    torch.testing.assert_close(rounded.scale, groups.abs().amax(-1) / 448)
    back = rounded.codes.float().view(tokens, 10, 128) * rounded.scale[:, :, None]
    assert share_near(back, groups) > (0.999 if DEVICE.type == "cuda" else 0.95)
