"""Products of few rows that norm what they read and add, gate or round on the way, against each step alone."""

from __future__ import annotations

import pytest
import torch

from nonet.kernels.ops import Activation
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.linear import Pending, float8_linear  # isort: skip  (gpu_cases chooses the interpreter)
from nonet.kernels.triton.linear_ends import Normed  # isort: skip
from nonet.kernels.triton.ops import TritonOps  # isort: skip
from tests.kernels.gpu_steps import made  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
NEAR = 8e-3 if DEVICE.type == "cuda" else 2e-3
# The interpreter's cast to float8 loses carries.
NEAR_FLOAT8 = 4e-2 if DEVICE.type == "cuda" else 9e-2
EPS = 1e-5
WIDE, INNER = 768, 512  # 12 tiles of outputs: no power of 2


@pytest.fixture
def ops() -> TritonOps:
    ops = TritonOps(DTYPE, DEVICE)
    ops.joins_few = True
    ops.linears.least_weights = 0
    return ops


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE) * scale


def near(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt() * weight.double()


def activated(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="tanh")


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_chain_of_products_gives_what_each_step_gives(
    ops: TritonOps, rows: int, activation: Activation
) -> None:
    x, residual = random(rows, 256), random(rows, WIDE)
    out, gate_up = random(WIDE, 256, scale=0.06), random(2 * INNER, WIDE, scale=0.04)
    down = random(WIDE, INNER, scale=0.04)
    biases = [random(WIDE), random(2 * INNER), random(WIDE)]
    weight = torch.rand(WIDE, device=DEVICE) + 0.5
    packed = [ops.pack(w, bias) for w, bias in zip((out, gate_up, down), biases, strict=True)]

    stream = residual.double() + x.double() @ out.double().t() + biases[0].double()
    halves = normed(stream, weight) @ gate_up.double().t() + biases[1].double()
    inner = activated(halves[:, :INNER], activation) * halves[:, INNER:]
    last = stream + inner @ down.double().t() + biases[2].double()

    first = ops.add_rms_norm(ops.linear(x, packed[0]), residual, weight, EPS)
    assert isinstance(first, Normed)
    assert first.shape == (rows, WIDE)
    assert near(residual, stream) < NEAR
    assert near(ops.settled(first), normed(stream, weight)) < NEAR
    waiting = ops.linear(first, packed[1])
    assert isinstance(waiting, Pending)
    assert waiting.shape == (rows, 2 * INNER)
    assert near(ops.settled(waiting), halves) < NEAR
    gates = ops.gated(waiting, activation)
    assert near(gates, inner) < NEAR
    second = ops.add_rms_norm(ops.linear(gates, packed[2]), residual, weight, EPS)
    assert near(residual, last) < NEAR
    assert near(ops.settled(second), normed(last, weight)) < NEAR
    # What a forgotten norm weight, bias or root would give is far outside.
    assert near(ops.settled(second), normed(last, torch.ones_like(weight))) > 10 * NEAR
    assert near(gates, inner.roll(1, dims=1)) > 10 * NEAR


@pytest.mark.parametrize("rows", [1, 5])
def test_float8_is_rounded_on_the_way(ops: TritonOps, rows: int) -> None:
    x, residual = random(rows, 256), random(rows, WIDE)
    weight = torch.rand(WIDE, device=DEVICE) + 0.5
    matrices = [random(WIDE, 256), random(2 * INNER, WIDE, scale=0.04), random(WIDE, INNER)]
    packed = [float8_linear(matrix, None) for matrix in matrices]
    out, gate_up, down = (one.weight.double() * one.scale.double()[:, None] for one in packed)
    stream = residual.double() + x.double() @ out.t()
    halves = normed(stream, weight) @ gate_up.t()
    inner = torch.nn.functional.silu(halves[:, :INNER]) * halves[:, INNER:]
    first = ops.add_rms_norm(ops.linear(x, packed[0]), residual, weight, EPS)
    gates = ops.gated(ops.linear(first, packed[1]), "silu")
    assert near(gates, inner) < 2 * NEAR_FLOAT8
    ops.add_rms_norm(ops.linear(gates, packed[2]), residual, weight, EPS)
    assert near(residual, stream + inner @ down.t()) < 2 * NEAR_FLOAT8


def test_gates_that_do_not_fill_tiles_are_made_apart(ops: TritonOps) -> None:
    x, gate_up = random(2, 256), random(80, 256)
    halves = x.double() @ gate_up.double().t()
    waiting = ops.linear(x, ops.pack(gate_up))
    assert isinstance(waiting, Pending)
    got = ops.gated(waiting, "silu")
    exact = torch.nn.functional.silu(halves[:, :40]) * halves[:, 40:]
    assert near(got, exact) < NEAR


def test_many_rows_and_odd_inputs_do_not_wait(ops: TritonOps) -> None:
    for rows, inputs in ((17, 256), (2, 128)):
        x, weight = random(rows, inputs), random(64, inputs)
        got = ops.linear(x, ops.pack(weight))
        assert isinstance(got, torch.Tensor)
        assert near(got, x.double() @ weight.double().t()) < NEAR


@torch.inference_mode()
@pytest.mark.parametrize("float8", [False, True])
def test_a_whole_step_gives_the_same_logits(float8: bool) -> None:
    ops, buffers, forward = made(DTYPE, float8)
    shape = buffers.fill([(1, 40), (3, 20), (1, 7)], 1)
    expected = forward(shape)
    ops.joins_few = True
    ops.linears.least_weights = 0
    got = forward(shape)
    assert near(got, expected.double()) < (2 * NEAR_FLOAT8 if float8 else 2 * NEAR)
