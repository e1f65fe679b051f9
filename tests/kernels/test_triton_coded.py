"""Weights in 8 and 4 bits, and float8 in blocks, in Triton: as exact as the numbers that the codes stand for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.groupwise import GroupwiseTensor  # isort: skip  (gpu_cases chooses the interpreter)
from nonet.kernels.inputs import InputRounding  # isort: skip
from nonet.kernels.triton import linear_coded  # isort: skip
from nonet.kernels.triton.coded import CodedLinear, dequantize, pack, take_rows  # isort: skip
from nonet.kernels.triton.fixed_order import FixedOrderOps  # isort: skip
from nonet.kernels.triton.linear import Float8Blocks  # isort: skip
from nonet.kernels.triton.linear_coded import CodedLinears  # isort: skip
from nonet.kernels.triton.ops import TritonOps  # isort: skip
from nonet.kernels.triton.quantize_rows import quantize_blocks  # isort: skip
from nonet.quant.formats import WEIGHT_FORMATS  # isort: skip
from nonet.quant.formats.base import StoredMatrix  # isort: skip
from nonet.quant.rounding import round_to_integers  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
IS_GPU = DEVICE.type == "cuda"
HALF = torch.bfloat16 if IS_GPU else torch.float16
NEAR = {torch.float16: 1e-3, torch.bfloat16: 4e-3}


def weight_of(outputs: int, inputs: int, bits: int, group: int, symmetric: bool) -> GroupwiseTensor:
    generator = torch.Generator().manual_seed(outputs + inputs + bits)
    dense = torch.randn(outputs, inputs, generator=generator) * 0.02
    dense *= torch.logspace(-1, 1, outputs)[:, None]
    return round_to_integers(dense, bits=bits, group=group, symmetric=symmetric, inputs="free")


def near(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got.double().cpu() - exact).norm() / exact.norm()).item()


CASES = [
    (4, 128, True, 100, 256),
    (4, 128, False, 64, 384),
    (4, 32, True, 130, 288),  # inputs that do not fill the last tile
    (4, 32, False, 70, 256),
    (4, 64, False, 64, 192),
    (4, 16, True, 64, 176),
    (8, 32, True, 100, 160),
    (8, 128, False, 64, 256),
    (8, 16, False, 70, 80),
    (8, 576, True, 64, 576),  # a scale for each output
]


@pytest.mark.parametrize(("bits", "group", "symmetric", "outputs", "inputs"), CASES)
@pytest.mark.parametrize("rows", [1, 20, 70])
def test_linear_equals_the_product_of_what_codes_stand_for(
    bits: int, group: int, symmetric: bool, outputs: int, inputs: int, rows: int
) -> None:
    weight = weight_of(outputs, inputs, bits, group, symmetric)
    bias = torch.randn(outputs)
    coded = pack(weight, bias.to(DEVICE, HALF), DEVICE)
    assert (coded.minima is None) == symmetric
    x = torch.randn(rows, inputs).to(HALF)
    exact = x.double() @ weight.dequantize().double().t() + bias.to(HALF).double()
    linears = CodedLinears(DEVICE, 1)
    for _ in range(2):  # the second run meets the arrival counters that the first left
        assert near(linears(x.to(DEVICE), coded, HALF), exact) < NEAR[HALF]
    assert linears(x[:0].to(DEVICE), coded, HALF).shape == (0, outputs)


@pytest.mark.parametrize(("bits", "group", "symmetric", "outputs", "inputs"), CASES)
def test_codes_come_back_as_numbers(
    bits: int, group: int, symmetric: bool, outputs: int, inputs: int
) -> None:
    weight = weight_of(outputs, inputs, bits, group, symmetric)
    coded = pack(weight, None, DEVICE)
    numbers = torch.empty(outputs, inputs, device=DEVICE)
    dequantize(coded, 0, numbers)
    assert near(numbers, weight.dequantize().double()) < 3e-4
    rows = torch.tensor([3, 0, outputs - 1, 3], dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(
        take_rows(coded, rows, 2.5, torch.float32), 2.5 * numbers[rows.long()]
    )
    if outputs > 64:
        later = torch.empty(outputs - 64, inputs, device=DEVICE)
        dequantize(coded, 64, later)
        assert torch.equal(later, numbers[64:])


def test_many_rows_go_through_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of the outputs, whose last is short."""
    monkeypatch.setattr(linear_coded, "NUMBERS_AT_ONCE", 64 * 256 + 5)
    weight = weight_of(150, 256, 4, 32, False)
    bias = torch.randn(150)
    coded = pack(weight, bias.to(DEVICE, HALF), DEVICE)
    x = torch.randn(300, 256).to(HALF)
    exact = x.double() @ weight.dequantize().double().t() + bias.to(HALF).double()
    assert near(CodedLinears(DEVICE, 1).any_rows(x.to(DEVICE), coded), exact) < NEAR[HALF]


@pytest.mark.parametrize("part", ["scale", "minimum", "codes"])
def test_a_wrong_group_would_be_seen(part: str) -> None:
    weight = weight_of(64, 256, 4, 32, False)
    coded = pack(weight, None, DEVICE)
    assert coded.minima is not None
    wrong = {
        "scale": dataclasses.replace(coded, scales=coded.scales.roll(1, 0)),
        "minimum": dataclasses.replace(coded, minima=coded.minima.roll(1, 0)),
        "codes": dataclasses.replace(coded, words=coded.words.roll(1, 3)),
    }[part]
    x = torch.randn(3, 256).to(HALF)
    exact = x.double() @ weight.dequantize().double().t()
    linears = CodedLinears(DEVICE, 1)
    assert near(linears(x.to(DEVICE), wrong, HALF), exact) > 10 * NEAR[HALF]


@pytest.mark.parametrize(
    "spec", ["int4", "int4:group=128", "int8", "int8:group=0", "int8:symmetric=false"]
)
def test_weight_formats_stay_codes(spec: str) -> None:
    """Linear, head and token table, through the operations that a model uses."""
    weight = torch.randn(70, 256) * 0.05
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    ops = TritonOps(HALF, DEVICE)
    x = torch.randn(5, 256).to(HALF)
    for role in ("linear", "embedding"):
        made = WEIGHT_FORMATS.build(spec).convert(stored, role)
        packed = ops.pack(made)
        assert isinstance(packed, CodedLinear)
        assert packed.words.nbytes == packed.bits * 128 * 256 // 8
        exact = x.double() @ made.dequantize().double().t()
        assert near(ops.linear(x.to(DEVICE), packed), exact) < NEAR[HALF]
        logits = ops.logits(x.to(DEVICE), packed, 2.0)
        assert logits.dtype == torch.float32
        assert near(logits, 2.0 * torch.tanh(exact / 2.0)) < NEAR[HALF]
    rows = torch.tensor([69, 0], dtype=torch.int32, device=DEVICE)
    found = ops.embed(rows, packed, 3.0)
    assert near(found, 3.0 * made.dequantize()[[69, 0]].double()) < NEAR[HALF]


def test_in_fixed_order_rows_do_not_depend_on_each_other() -> None:
    ops = FixedOrderOps(HALF, DEVICE)
    coded = ops.pack(weight_of(130, 288, 4, 32, False))
    x = torch.randn(300, 288, device=DEVICE, dtype=HALF)
    whole = ops.linear(x, coded)
    for start, stop in ((0, 1), (5, 9), (250, 270), (299, 300)):
        assert torch.equal(ops.linear(x[start:stop], coded), whole[start:stop])


def test_blocks_of_float8_become_a_linear_of_their_own() -> None:
    weight = torch.randn(200, 320) * 0.02
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    made = WEIGHT_FORMATS.build("fp8:scale=block").convert(stored, "linear")
    packed = TritonOps(HALF, DEVICE).pack(made)
    assert isinstance(packed, Float8Blocks)
    assert packed.scales.shape == (200, 3)
    assert torch.equal(packed.weight.float().cpu(), made.values.float())


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 300, 1000])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (1000, 2000), (576, 1536)])
def test_float8_in_blocks(rows: int, outputs: int, inputs: int) -> None:
    """Against the product of what was rounded, and the rounding against its specification."""
    weight = torch.randn(outputs, inputs) * torch.logspace(-2, 0, inputs)
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    made = WEIGHT_FORMATS.build("fp8:scale=block").convert(stored, "linear")
    ops = TritonOps(HALF, DEVICE)
    packed = ops.pack(made)
    x = (
        torch.randn(rows, inputs, device=DEVICE)
        * torch.logspace(-3, 3, rows, device=DEVICE)[:, None]
    ).to(HALF)
    rounded = quantize_blocks(x, 128)
    wide = rounded.scale.repeat_interleave(128, 1)[:, :inputs]
    numbers = rounded.codes.float() * wide
    expected = InputRounding("float8", 128).apply(x)
    assert near(numbers, expected.double().cpu()) < 5e-3
    exact = numbers.double() @ made.dequantize().to(DEVICE).double().t()
    assert near(ops.linear(x, packed), exact.cpu()) < NEAR[HALF]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 33, 64, 200, 256, 1000])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (4, 16), (8, 32), (8, 128)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wide_matrices(
    rows: int, bits: int, group: int, symmetric: bool, dtype: torch.dtype
) -> None:
    ops = TritonOps(dtype, DEVICE)
    weight = weight_of(6144, 4096, bits, group, symmetric)
    coded = ops.pack(weight)
    x = torch.randn(rows, 4096, device=DEVICE, dtype=dtype)
    exact = x.double() @ weight.dequantize().to(DEVICE).double().t()
    assert near(ops.linear(x, coded), exact.cpu()) < NEAR[dtype]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 128, True), (4, 32, False), (8, 32, True)]
)
def test_any_number_of_rows_gives_the_same_bits(bits: int, group: int, symmetric: bool) -> None:
    ops = FixedOrderOps(HALF, DEVICE)
    coded = ops.pack(weight_of(4096, 4096, bits, group, symmetric))
    x = torch.randn(1000, 4096, device=DEVICE, dtype=HALF)
    whole = ops.linear(x, coded)
    for start, stop in ((0, 1), (7, 23), (0, 33), (1, 66), (200, 500)):
        assert torch.equal(ops.linear(x[start:stop], coded), whole[start:stop]), (start, stop)
