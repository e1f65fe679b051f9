"""Groupwise weights in C++: exact against the dequantised product, int8 activations within their rounding."""

from __future__ import annotations

import pytest
import torch

from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])

FORMATS = [
    (bits, group, kind)
    for bits in (4, 8)
    for group in (16, 32, 64, 128)
    for kind in ("symmetric", "minimum")
]
CASES = [((50, 1408), *form) for form in FORMATS] + [
    (shape, *form)
    for shape in [(960, 576), (17, 64), (1, 128), (48, 4864), (200, 2560)]
    for form in [(4, 32, "minimum"), (8, 64, "symmetric")]
]


def quantized(
    outputs: int, inputs: int, bits: int, group: int, kind: str, half: bool = True, seed: int = 0
) -> GroupwiseTensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(outputs, inputs // group, generator=generator) + 0.1) / 2**bits
    minimum = torch.randn(outputs, inputs // group, generator=generator) * 0.3 - 0.5
    if half:
        scale, minimum = scale.half().float(), minimum.half().float()
    if kind == "symmetric":
        minimum = scale * -(2 ** (bits - 1))
    return GroupwiseTensor(codes, scale, minimum, group, bits)


def exact_in_int8(rows: int, columns: int, group: int) -> torch.Tensor:
    """Activations that int8 per group holds exactly: whole multiples of 1/32, the largest of a group 127/32."""
    x = torch.randint(-126, 127, (rows, columns // group, group)) / 32
    x[:, :, 3] = -127 / 32
    return x.view(rows, columns)


@pytest.mark.parametrize(("shape", "bits", "group", "kind"), CASES)
def test_agrees_with_the_dequantised_product(
    shape: tuple[int, int], bits: int, group: int, kind: str
) -> None:
    torch.manual_seed(0)
    weight, bias = quantized(*shape, bits, group, kind), torch.randn(shape[0])
    dense = weight.dequantize()
    modes = [
        (NativeOps(torch.float32, 2), dense),
        (NativeOps(torch.bfloat16, 2, int8_activations=False), dense.bfloat16()),
        (NativeOps(torch.bfloat16, 2), dense),
    ]
    scale = dense.abs().amax().item() * shape[1] ** 0.5
    for ops, used in modes:
        packed = ops.pack(weight, bias)
        for rows in (0, 1, 3, 4, 5, 6, 17, 70):
            x = exact_in_int8(rows, shape[1], group)  # which bfloat16 holds too
            expected = (x.double() @ used.double().T + bias).float()
            torch.testing.assert_close(
                ops.linear(x, packed), expected, atol=4e-6 * scale, rtol=2e-5
            )


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_activations_costs_less_than_a_percent(bits: int) -> None:
    torch.manual_seed(0)
    weight, x = quantized(200, 2560, bits, 32, "symmetric"), torch.randn(20, 2560)
    ops = NativeOps(torch.bfloat16, 2)
    expected = x @ weight.dequantize().T
    error = (ops.linear(x, ops.pack(weight)) - expected).norm() / expected.norm()
    assert 1e-4 < error < 1e-2


@pytest.mark.parametrize("mode", ["exact32", "exact16", "int8"])
@pytest.mark.parametrize(("bits", "kind"), [(4, "minimum"), (8, "symmetric")])
def test_a_row_is_the_same_bits_in_any_batch(mode: str, bits: int, kind: str) -> None:
    dtype = torch.float32 if mode == "exact32" else torch.bfloat16
    weight, x = quantized(100, 2560, bits, 32, kind), torch.randn(140, 2560)
    ops = NativeOps(dtype, 1, int8_activations=mode == "int8")
    packed = ops.pack(weight)
    alone = torch.cat([ops.linear(x[i : i + 1], packed) for i in range(140)])
    for threads in (1, 2, 3):
        ops = NativeOps(dtype, threads, int8_activations=mode == "int8")
        packed = ops.pack(weight)
        for rows in (2, 4, 5, 6, 13, 64, 67, 140):
            assert torch.equal(ops.linear(x[:rows], packed), alone[:rows])


@pytest.mark.parametrize(("bits", "group", "kind"), FORMATS)
@pytest.mark.parametrize("half", [False, True])
def test_embedding(bits: int, group: int, kind: str, half: bool) -> None:
    weight = quantized(50, 256, bits, group, kind, half)
    ids = torch.tensor([0, 49, 16, 15, 3], dtype=torch.int32)
    ops = NativeOps(torch.bfloat16, 2)
    got = ops.embed(ids, ops.pack(weight), 1.5)
    torch.testing.assert_close(got, weight.dequantize()[ids.long()] * 1.5, atol=1e-6, rtol=1e-6)


def test_scales_that_float16_cannot_hold_stay_float32() -> None:
    for half in (False, True):
        weight = quantized(32, 256, 4, 32, "minimum", half)
        ops = NativeOps(torch.float32, 1)
        packed = ops.pack(weight)
        assert packed.tensors[0].shape[-1] == 256 + (64 if half else 128)
        x = torch.randn(2, 256)
        torch.testing.assert_close(
            ops.linear(x, packed), x @ weight.dequantize().T, atol=1e-4, rtol=1e-5
        )


def test_symmetric_formats_store_no_minimums() -> None:
    ops = NativeOps(torch.bfloat16, 1)
    assert ops.pack(quantized(32, 256, 8, 32, "symmetric")).tensors[0].shape[-1] == 512 + 32


def test_rows_of_zeros_and_of_huge_numbers() -> None:
    weight = quantized(32, 256, 4, 32, "minimum")
    ops = NativeOps(torch.bfloat16, 1)
    packed = ops.pack(weight)
    x = torch.stack((torch.zeros(256), torch.full((256,), 1e30), torch.full((256,), 1e-30)))
    expected = x @ weight.dequantize().T
    torch.testing.assert_close(ops.linear(x, packed), expected, atol=0, rtol=1e-4)


def test_groups_that_no_record_can_hold_become_dense() -> None:
    codes = torch.randint(0, 16, (20, 96), dtype=torch.uint8)
    weight = GroupwiseTensor(codes, torch.rand(20, 12), torch.rand(20, 12), 8, 4)
    ops = NativeOps(torch.float32, 1)
    x = torch.randn(3, 96)
    torch.testing.assert_close(
        ops.linear(x, ops.pack(weight)), x @ weight.dequantize().T, atol=1e-4, rtol=1e-5
    )


def test_logits_of_a_groupwise_table() -> None:
    weight, x = quantized(1003, 128, 8, 32, "symmetric"), torch.randn(3, 128) * 5
    ops, reference = NativeOps(torch.float32, 2), ReferenceOps(torch.float32, torch.device("cpu"))
    got = ops.logits(x, ops.pack(weight), 30.0)
    torch.testing.assert_close(
        got, reference.logits(x, reference.pack(weight), 30.0), atol=1e-4, rtol=1e-4
    )
