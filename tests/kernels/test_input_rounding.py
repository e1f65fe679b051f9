"""Activations in 8 bits: products against whole-number arithmetic, in the reference and in the native kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nonet.core.errors import ConfigError
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.inputs import InputRounding
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.ops import Ops
from nonet.kernels.reference.ops import ReferenceOps
from nonet.quant.rounding import round_to_float8, round_to_integers

native = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])
SHAPES = [(48, 64), (50, 576), (200, 2560), (17, 4864)]


def reference() -> ReferenceOps:
    return ReferenceOps(torch.float32, torch.device("cpu"))


def integers(shape: tuple[int, int], bits: int = 8, group: int = 0) -> GroupwiseTensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator) * 0.05
    return round_to_integers(
        weight, bits=bits, group=group or shape[1], symmetric=True, inputs="token"
    )


def exact_by_token(rows: int, columns: int) -> torch.Tensor:
    """Whole multiples of 1/32, the largest of each row 127/32: int8 holds them with one scale a token."""
    x = torch.randint(-126, 127, (rows, columns)).float()
    x[:, columns // 2] = -127
    return x / 32


def product(x: torch.Tensor, weight: GroupwiseTensor, bias: torch.Tensor) -> np.ndarray:
    """s_x * s_w * sum(q_x * q_w), the sum in whole numbers."""
    scale = x.abs().amax(1, keepdim=True).double().numpy() / 127
    codes = np.rint(x.double().numpy() / scale).astype(np.int64)
    signed = weight.codes.numpy().astype(np.int64) - 128
    sums = codes @ signed.T
    return sums * scale * weight.scale[:, 0].double().numpy() + bias.double().numpy()


def implementations() -> list[Ops]:
    ops: list[Ops] = [reference()]
    if native_available()[0]:
        ops += [NativeOps(torch.float32, 2), NativeOps(torch.bfloat16, 2)]
    return ops


@pytest.mark.parametrize("shape", SHAPES)
def test_w8a8_is_a_product_of_integers(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, bias = integers(shape), torch.randn(shape[0])
    for ops in implementations():
        packed = ops.pack(weight, bias)
        for rows in (1, 2, 3, 5, 17, 70):
            x = exact_by_token(rows, shape[1])
            got = ops.linear(x, packed).double().numpy()
            np.testing.assert_allclose(got, product(x, weight, bias), rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_ordinary_activations_are_rounded_by_token(shape: tuple[int, int]) -> None:
    """Where a value lies near the middle of two codes, implementations may differ by one of them."""
    torch.manual_seed(0)
    weight, bias = integers(shape), torch.zeros(shape[0])
    x = torch.randn(12, shape[1]) * torch.logspace(-3, 3, 12)[:, None]
    expected = product(x, weight, bias)
    for ops in implementations():
        got = ops.linear(x, ops.pack(weight)).double().numpy()
        error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 1e-3, ops.name


@native
def test_the_check_sees_a_scale_for_each_group() -> None:
    """Mutant: activations rounded group by group, as for weights that leave the choice to the kernels."""
    torch.manual_seed(0)
    weight, bias = integers((50, 576)), torch.zeros(50)
    x = torch.randn(12, 576)
    by_group = GroupwiseTensor(weight.codes, weight.scale, weight.minimum, weight.group, 8, "free")
    ops, expected = NativeOps(torch.bfloat16, 2), product(x, weight, bias)
    error = np.abs(ops.linear(x, ops.pack(by_group)).double().numpy() - expected)
    assert (np.linalg.norm(error, axis=1) / np.linalg.norm(expected, axis=1)).max() > 1e-3


@native
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 32), (4, 96)])
def test_a_row_is_the_same_bits_in_any_batch(bits: int, group: int) -> None:
    weight, x = integers((100, 576), bits, group), torch.randn(70, 576)
    ops = NativeOps(torch.bfloat16, 1)
    packed = ops.pack(weight)
    alone = torch.cat([ops.linear(x[i : i + 1], packed) for i in range(70)])
    for threads in (1, 3):
        more = NativeOps(torch.bfloat16, threads)
        for rows in (2, 5, 13, 64, 70):
            assert torch.equal(more.linear(x[:rows], more.pack(weight)), alone[:rows])


@native
def test_weights_alone_are_rounded_when_activations_are_exact() -> None:
    torch.manual_seed(0)
    made = integers((50, 576))
    weight = GroupwiseTensor(made.codes, made.scale, made.minimum, made.group, 8, "exact")
    x = torch.randn(6, 576).bfloat16().float()
    expected = x.double() @ weight.dequantize().bfloat16().double().T
    ops = NativeOps(torch.bfloat16, 2)
    torch.testing.assert_close(
        ops.linear(x, ops.pack(weight)), expected.float(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("block", [(1, 576), (50, 576), (16, 128)])
@pytest.mark.parametrize("inputs", ["token", "group", "exact"])
def test_float8_products(block: tuple[int, int], inputs: str) -> None:
    """Against float64 sums over torch's own casts, with the scales taken out of the sum as a GPU does."""
    torch.manual_seed(0)
    source, bias, x = torch.randn(50, 576) * 0.05, torch.randn(50), torch.randn(9, 576) * 3
    weight = round_to_float8(source, block=block, inputs=inputs)  # type: ignore[arg-type]
    expected = torch.zeros(9, 50, dtype=torch.float64)
    for start in range(0, 576, block[1]):
        here = slice(start, start + block[1])
        if inputs == "exact":
            left, scale = x[:, here].double(), torch.ones(9, 1)
        else:
            part = x if inputs == "token" else x[:, here]
            scale = part.abs().amax(1, keepdim=True) / 448
            left = (x[:, here] / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double()
        sums = left @ weight.values[:, here].double().T
        expected += sums * scale.double() * weight.scale[:, start // block[1]].double()
    got = reference().linear(x, reference().pack(weight, bias)).double()
    torch.testing.assert_close(got, expected + bias.double(), rtol=1e-4, atol=1e-4)


def test_a_short_last_group_and_rows_of_zeros() -> None:
    x = torch.zeros(2, 70)
    x[1, 64:] = torch.tensor([1.0, 2, 3, 4, 5, 127])
    for kind in ("int8", "float8"):
        rounded = InputRounding(kind, 32).apply(x)  # type: ignore[arg-type]
        assert torch.equal(rounded[0], x[0])
        assert torch.isfinite(rounded).all()
    assert torch.equal(InputRounding("int8", 32).apply(x), x)


def test_the_largest_value_of_float8_does_not_overflow() -> None:
    x = torch.tensor([[448.0, -448.0, 447.9, 1e-3], [3.3e38, -3.3e38, 1.0, 0.0]])
    assert torch.isfinite(InputRounding("float8", None).apply(x)).all()


@native
def test_what_the_native_kernels_cannot_round_is_refused() -> None:
    ops = NativeOps(torch.bfloat16, 1)
    with pytest.raises(ConfigError, match="cannot round the 100 inputs of a layer to int8"):
        ops.pack(integers((32, 100)))
    float8: Float8Tensor = round_to_float8(torch.randn(32, 64), block=(1, 64), inputs="token")
    with pytest.raises(ConfigError, match="to float8 in groups of 64; use kernels reference"):
        ops.pack(float8)
