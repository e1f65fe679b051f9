"""Linear layers in Triton: few rows over dense and float8 weights, and the rounding of activations to float8."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.core.errors import ConfigError  # isort: skip  (gpu_cases chooses the interpreter)
from nonet.kernels.triton.linear import DenseLinear, Float8Linear, Linears, float8_linear  # isort: skip
from nonet.kernels.triton.linear_few import FewRowsTiling  # isort: skip
from nonet.kernels.triton.linear_integers import IntegerLinear  # isort: skip
from nonet.kernels.triton.fixed_order import FixedOrderOps  # isort: skip
from nonet.kernels.inputs import InputRounding  # isort: skip
from nonet.kernels.triton.linear_one import OneRowTiling, linear_one  # isort: skip
from nonet.kernels.triton.ops import TritonOps  # isort: skip
from nonet.kernels.triton.scaled import settled  # isort: skip
from nonet.kernels.triton.quantize_rows import quantize_rows  # isort: skip
from nonet.quant.formats import WEIGHT_FORMATS  # isort: skip
from nonet.quant.formats.base import StoredMatrix  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU")
TILINGS = [
    FewRowsTiling(outputs=64, inputs=64, warps=4, stages=2, programs=5),
    FewRowsTiling(outputs=64, inputs=128, warps=4, stages=3, programs=3),
]


def near(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 100, 256), (3, 192, 384), (20, 64, 128)]
)
def test_few_rows_equal_the_product(
    tiling: FewRowsTiling, rows: int, outputs: int, inputs: int
) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    x = torch.randn(rows, inputs, device=DEVICE, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=dtype)
    bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
    linears = Linears(DEVICE, 3)
    for _ in range(2):  # the second run meets the arrival counters that the first left
        got = torch.full((rows, outputs), torch.nan, device=DEVICE, dtype=dtype)
        linears.few(x, None, weight, None, bias, got, tiling)
        assert near(got, x.double() @ weight.double().t() + bias.double()) < 4e-3


@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_with_a_scale_for_each_group(rows: int) -> None:
    """Each 128 inputs of a row have a scale, and each output; the programs' shares end inside and between groups."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    x = torch.randn(rows, 512, device=DEVICE, dtype=dtype)
    weight = torch.randn(100, 512, device=DEVICE, dtype=dtype)
    x_scale = torch.rand(rows, 4, device=DEVICE) + 0.1
    scale = torch.rand(100, device=DEVICE) + 0.1
    got = torch.full((rows, 100), torch.nan, device=DEVICE, dtype=dtype)
    Linears(DEVICE, 3).few(x, x_scale, weight, scale, None, got, TILINGS[1])
    wide = x.double() * x_scale.double().repeat_interleave(128, dim=1)
    exact = wide @ (weight.double() * scale.double()[:, None]).t()
    assert near(got, exact) < 4e-3
    shifted = x.double() * x_scale.double().roll(1, dims=1).repeat_interleave(128, dim=1)
    assert near(got, shifted @ (weight.double() * scale.double()[:, None]).t()) > 0.1


@pytest.mark.parametrize("tiling", [OneRowTiling(4, 256, 1), OneRowTiling(16, 512, 4)], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(100, 512), (64, 384), (33, 256), (16, 1024)])
@pytest.mark.parametrize("scales", ["none", "row", "groups"])
def test_one_row_equals_the_product(
    tiling: OneRowTiling, outputs: int, inputs: int, scales: str
) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    x = torch.randn(1, inputs, device=DEVICE, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=dtype)
    bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
    each = {"none": inputs, "row": inputs, "groups": 128}[scales]
    x_scale = torch.rand(1, inputs // each, device=DEVICE) + 0.1
    scale = torch.rand(outputs, device=DEVICE) + 0.1
    got = torch.full((1, outputs), torch.nan, device=DEVICE, dtype=dtype)
    given = (None, None) if scales == "none" else (x_scale, scale)
    linear_one(x, given[0], weight, given[1], bias, out=got, tiling=tiling)
    wide, exact_weight = x.double(), weight.double()
    if scales != "none":
        wide = wide * x_scale.double().repeat_interleave(each, dim=1)
        exact_weight = exact_weight * scale.double()[:, None]
    assert near(got, wide @ exact_weight.t() + bias.double()) < 4e-3


def test_a_missing_share_would_be_seen() -> None:
    """The product without its last input tile is far outside the tolerance of the test above."""
    x, weight = torch.randn(3, 256, dtype=torch.float64), torch.randn(64, 256, dtype=torch.float64)
    assert near(x[:, :192] @ weight[:, :192].t(), x @ weight.t()) > 0.1


@gpu
@pytest.mark.gpu
def test_rows_are_rounded_like_torch() -> None:
    sizes = torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0], device=DEVICE)
    x = torch.randn(5, 300, device=DEVICE) * sizes[:, None]
    rounded = quantize_rows(x)
    codes, scale = rounded.codes, rounded.scale
    expected = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.isfinite(codes.float()).all()
    # Dividing and multiplying by the inverse round differently once in a while: a step of e4m3 at most.
    assert ((codes.float() - expected).abs() <= expected.abs() / 8 + 2**-9).all()
    assert (codes.float() != expected).float().mean() < 0.02
    torch.testing.assert_close(scale[:, 0].cpu(), x.abs().amax(1).cpu().clamp(min=1e-12) / 448)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 64, 65, 300, 513, 700, 1023])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (1024, 2048), (1536, 8960)])
def test_float8_linear(rows: int, outputs: int, inputs: int) -> None:
    """Against the product of what was rounded, which leaves the order of sums alone; and near the unrounded one."""
    ops = TritonOps(torch.bfloat16, DEVICE)
    x = torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) * 0.02
    bias = torch.randn(outputs, device=DEVICE, dtype=torch.bfloat16)
    packed = ops.pack_float8(weight, bias)
    rounded = quantize_rows(x)
    left = rounded.codes.double() * rounded.scale
    right = packed.weight.double() * packed.scale.double()[:, None]
    got = ops.linear(x, packed)
    assert got.dtype == torch.bfloat16
    assert near(got, left @ right.t() + bias.double()) < 6e-3
    assert near(got, x.double() @ weight.double().t() + bias.double()) < 4.5e-2


@pytest.mark.parametrize("rows", [1, 40, 600])
@pytest.mark.parametrize("has_bias", [False, True])
def test_float8_products_stay_within_float16(rows: int, has_bias: bool) -> None:
    """All codes are the largest there are: the sum of their products is far beyond float16, the result is not."""
    ops = TritonOps(torch.float16, DEVICE)
    bias = torch.ones(64, device=DEVICE, dtype=torch.float16) if has_bias else None
    packed = ops.pack_float8(torch.ones(64, 2048, device=DEVICE), bias)
    got = settled(ops.linear(torch.ones(rows, 2048, device=DEVICE, dtype=torch.float16), packed))
    assert got.dtype == torch.float16
    assert got.float().sub(2048 + has_bias).abs().max() <= 4


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_norms_and_gates_round_on_the_way(rows: int) -> None:
    """A float8 linear gives the same bits whether its input was rounded where it was made or by itself."""
    ops = TritonOps(torch.bfloat16, DEVICE)
    packed = ops.pack_float8(torch.randn(1024, 2048, device=DEVICE))
    x, residual = (
        torch.randn(rows, 2048, device=DEVICE, dtype=torch.bfloat16) * 3 for _ in range(2)
    )
    weight = torch.rand(2048, device=DEVICE) + 0.5
    wide = torch.randn(rows, 4096, device=DEVICE, dtype=torch.bfloat16)
    for make in (
        lambda: ops.rms_norm(x, weight, 1e-5),
        lambda: ops.add_rms_norm(x, residual, weight, 1e-5),
        lambda: ops.gated(wide, "silu"),
        lambda: ops.gated(wide, "gelu_tanh"),
    ):
        made = make()
        on_the_way, alone = (settled(ops.linear(one, packed)) for one in (made, made.clone()))
        if rows > 16 or ops.rounded(made).groups == 1:
            assert torch.equal(on_the_way, alone)
        else:  # few rows out of a gate have a scale for each group: nearer to what was not rounded
            assert near(on_the_way, alone.double()) < 6e-2


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 9, 16])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (6144, 4096), (1000, 2048)])
def test_dense_few_rows(rows: int, outputs: int, inputs: int) -> None:
    ops = TritonOps(torch.bfloat16, DEVICE)
    x = torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16)
    got = ops.linear(x, ops.pack(weight))
    assert near(got, x.double() @ weight.double().t()) < 4e-3
    # One row alone has a kernel of its own, which rounds otherwise.
    fewer = ops.linear(x[:2], ops.pack(weight))
    assert torch.equal(fewer, got[:2]), "a row's bits do not depend on how many others there are"


def test_float8_weights_keep_their_scale() -> None:
    weight = torch.randn(8, 32) * torch.logspace(-4, 2, 8)[:, None]
    packed = float8_linear(weight, None)
    back = packed.weight.float() * packed.scale[:, None]
    assert ((back - weight).norm(dim=1) / weight.norm(dim=1) < 0.04).all()


@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_the_weight_format_becomes_a_float8_linear(scale: str) -> None:
    """`--quant fp8` and `pack_float8` are one and the same for a scale per output."""
    weight, bias = torch.randn(48, 64) * torch.logspace(-2, 1, 48)[:, None], torch.randn(48)
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    made = WEIGHT_FORMATS.build(f"fp8:scale={scale}").convert(stored, "linear")
    ops = TritonOps(torch.bfloat16 if DEVICE.type == "cuda" else torch.float16, DEVICE)
    packed = ops.pack(made, bias)
    assert isinstance(packed, Float8Linear)
    back = packed.weight.float() * packed.scale[:, None]
    assert torch.equal(back.cpu(), made.dequantize())
    if scale == "channel":
        own = ops.pack_float8(weight, bias)
        assert torch.equal(packed.weight.float(), own.weight.float())
        assert torch.equal(packed.scale, own.scale)
    if DEVICE.type == "cuda":
        x = torch.randn(5, 64, device=DEVICE, dtype=torch.bfloat16)
        exact = x.double() @ weight.double().t().to(DEVICE) + bias.double().to(DEVICE)
        assert near(ops.linear(x, packed), exact) < 0.1


@pytest.mark.parametrize("rows", [1, 9, 70, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(100, 1024), (64, 384)])
def test_products_of_integers(rows: int, outputs: int, inputs: int) -> None:
    """Against the specification of the rounding; whole sums are exact, so only the output's dtype rounds."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    weight, bias = (
        torch.randn(outputs, inputs) * torch.logspace(-2, 0, outputs)[:, None],
        torch.randn(outputs),
    )
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    made = WEIGHT_FORMATS.build("w8a8").convert(stored, "linear")
    x = (torch.randn(rows, inputs) * torch.logspace(-1, 1, rows)[:, None]).to(dtype)
    exact = InputRounding("int8", None).apply(x).double() @ made.dequantize().double().t() + bias
    for ops in (TritonOps(dtype, DEVICE), FixedOrderOps(dtype, DEVICE)):
        packed = ops.pack(made, bias)
        assert isinstance(packed, IntegerLinear)
        got = ops.linear(x.to(DEVICE), packed)
        assert got.dtype == dtype
        assert near(got.cpu(), exact) < 4e-3
        assert torch.equal(ops.linear(x[:1].to(DEVICE), packed), got[:1])


def test_what_the_kernels_do_not_multiply_is_refused() -> None:
    weight = torch.randn(32, 256)
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    ops = TritonOps(torch.float16, DEVICE)
    for spec in ("w8a8:group=64", "int8:activations=token"):
        with pytest.raises(ConfigError, match="an output has one scale"):
            ops.pack(WEIGHT_FORMATS.build(spec).convert(stored, "linear"))
    half_blocks = WEIGHT_FORMATS.build("fp8:scale=block").convert(stored, "linear")
    with pytest.raises(ConfigError, match="by 128 inputs"):
        ops.pack(dataclasses.replace(half_blocks, group=64, scale=half_blocks.scale.repeat(1, 2)))
    made = WEIGHT_FORMATS.build("fp8:activations=exact").convert(stored, "linear")
    dense = ops.pack(made)
    assert isinstance(dense, DenseLinear)
    torch.testing.assert_close(dense.weight.float().cpu(), made.dequantize(), atol=1e-3, rtol=1e-3)
