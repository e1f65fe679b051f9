"""Each weight format against formulas written here, one number at a time, and its plan against what kernels hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.native import NativeOps, native_available
from nonet.kernels.ops import WeightMatrix
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.quant.formats.base import Role, StoredMatrix
from nonet.quant.formats.matrices import effective_group, matrices
from nonet.quant.rounding import round_to_float8, round_to_integers

ROWS, COLUMNS = 40, 192
SPEC = ModelSpec(
    family="llama",
    vocab_size=304,
    hidden_size=96,
    intermediate_size=320,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position=64,
    norm_eps=1e-5,
    rope=RopeSpec(1e4),
)


def sample(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Rows and columns of very different size, an outlier, and a row of zeros."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    weight *= torch.logspace(-1, 1, rows)[:, None] * torch.logspace(0.5, -0.5, columns)[None, :]
    weight[3, 7] = 4.0
    weight[5] = 0.0
    return weight


def convert(spec: str, weight: torch.Tensor, role: Role = "linear") -> WeightMatrix:
    stored = StoredMatrix(dense=lambda: weight, codes=lambda: None)
    made: WeightMatrix = WEIGHT_FORMATS.build(spec).convert(stored, role)
    return made


def symmetric(weight: np.ndarray, bits: int) -> np.ndarray:
    """One group: s = max |w| / (2**(bits - 1) - 1), codes from -2**(bits - 1)."""
    half = 2 ** (bits - 1)
    scale = np.float64(np.float16(np.abs(weight).max() / (half - 1))) or 1.0
    codes = np.clip(np.rint(weight.astype(np.float64) / scale), -half, half - 1)
    return codes * scale


def with_minimum(weight: np.ndarray, bits: int) -> np.ndarray:
    low, high = min(0.0, weight.min()), max(0.0, weight.max())
    scale = np.float64(np.float16((high - low) / (2**bits - 1))) or 1.0
    minimum = np.float64(np.float16(low))
    codes = np.clip(np.rint((weight.astype(np.float64) - minimum) / scale), 0, 2**bits - 1)
    return codes * scale + minimum


def every_float8() -> np.ndarray:
    """The finite values of e4m3fn by their bits: 1 sign, 4 exponent with bias 7, 3 mantissa; 0x7f is NaN."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)


def float8(block: np.ndarray) -> np.ndarray:
    """One block: s = max |w| / 448 in float32, each w / s to the nearest value, ties to the even code."""
    scale = np.float32(np.abs(block).max()) / np.float32(448) or np.float32(1)
    values, wanted = every_float8(), np.abs(block / scale)
    above = np.clip(np.searchsorted(values, wanted), 1, 126)
    low, high = wanted - values[above - 1], values[above] - wanted
    nearest = np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)
    return np.sign(block) * values[nearest] * scale


def by_group(
    weight: torch.Tensor, group: int, one: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    parts = weight.numpy().reshape(weight.shape[0], -1, group)
    return np.stack([[one(part) for part in row] for row in parts]).reshape(weight.shape)


def by_block(weight: torch.Tensor, height: int, width: int) -> np.ndarray:
    source = weight.numpy()
    out = np.empty(source.shape)
    for row in range(0, source.shape[0], height):
        for column in range(0, source.shape[1], width):
            here = (slice(row, row + height), slice(column, column + width))
            out[here] = float8(source[here])
    return out


EXPECTED: dict[str, Callable[[torch.Tensor], np.ndarray]] = {
    "int8": lambda w: by_group(w, 32, lambda part: symmetric(part, 8)),
    "int8:group=0": lambda w: by_group(w, COLUMNS, lambda part: symmetric(part, 8)),
    "int8:group=64,symmetric=false": lambda w: by_group(w, 64, lambda part: with_minimum(part, 8)),
    "w8a8": lambda w: by_group(w, COLUMNS, lambda part: symmetric(part, 8)),
    "int4": lambda w: by_group(w, 32, lambda part: with_minimum(part, 4)),
    "int4:group=128": lambda w: by_group(w, 96, lambda part: with_minimum(part, 4)),
    "int4:group=64,symmetric=true": lambda w: by_group(w, 64, lambda part: symmetric(part, 4)),
    "int4:group=0": lambda w: by_group(w, COLUMNS, lambda part: with_minimum(part, 4)),
    "fp8": lambda w: by_block(w, 1, COLUMNS),
    "fp8:scale=tensor": lambda w: by_block(w, ROWS, COLUMNS),
    "fp8:scale=block": lambda w: by_block(w, 128, 128),
}


def agrees(made: WeightMatrix, expected: np.ndarray) -> bool:
    assert not isinstance(made, torch.Tensor)
    return np.allclose(made.dequantize().numpy(), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("spec", EXPECTED)
def test_weights_equal_the_formula(spec: str) -> None:
    weight = sample()
    made, expected = convert(spec, weight), EXPECTED[spec](weight)
    assert agrees(made, expected)
    assert np.abs(expected - weight.numpy()).max() > 1e-3, "nothing was rounded"
    assert not expected[5].any()


def test_blocks_of_many_sizes() -> None:
    weight = sample(300, 320)
    assert agrees(convert("fp8:scale=block", weight), by_block(weight, 128, 128))


def test_the_check_rejects_a_zero_off_by_one() -> None:
    weight = sample()
    for spec in ("int8", "int4", "int4:group=64,symmetric=true"):
        made = convert(spec, weight)
        assert isinstance(made, GroupwiseTensor)
        for step in (1, -1):
            wrong = replace(made, minimum=made.minimum + step * made.scale)
            assert not agrees(wrong, EXPECTED[spec](weight))


def test_the_check_rejects_scales_along_the_wrong_axis() -> None:
    weight = sample()
    knobs = {"bits": 8, "symmetric": True, "inputs": "exact"}
    down = round_to_integers(weight.t().contiguous(), group=ROWS, **knobs)  # type: ignore[arg-type]
    right = EXPECTED["int8:group=0"](weight)
    assert not np.allclose(down.dequantize().t().numpy(), right, rtol=2e-6)
    columns = round_to_float8(weight, block=(ROWS, 1), inputs="exact")
    assert not agrees(columns, EXPECTED["fp8"](weight))


def test_the_check_rejects_swapped_axes_of_blocks() -> None:
    weight = sample(96, 96)
    tall = round_to_float8(weight, block=(32, 16), inputs="exact")
    assert agrees(tall, by_block(weight, 32, 16))
    assert not agrees(
        round_to_float8(weight, block=(16, 32), inputs="exact"), by_block(weight, 32, 16)
    )


def test_the_check_rejects_a_scale_of_128() -> None:
    """Mutant: max |w| / 2**(bits - 1), which never uses the last step."""
    weight = sample()
    made = convert("int8", weight)
    assert isinstance(made, GroupwiseTensor)
    scale = made.scale * (127 / 128)
    assert not agrees(replace(made, scale=scale, minimum=-128 * scale), EXPECTED["int8"](weight))


def test_finer_scales_are_nearer() -> None:
    weight = sample()

    def error(spec: str) -> float:
        made = convert(spec, weight)
        assert not isinstance(made, torch.Tensor)
        return float((made.dequantize() - weight).norm())

    assert error("int8") < error("int8:group=0") < error("int4:group=32")
    assert error("int4:group=32") < error("int4:group=64") < error("int4:group=0")
    assert error("fp8") < error("fp8:scale=tensor")


@pytest.mark.parametrize(
    ("columns", "group", "size"),
    [(576, 32, 32), (576, 128, 96), (640, 128, 128), (576, 0, 576), (96, 256, 96), (100, 32, 25)],
)
def test_groups_that_do_not_divide_the_inputs(columns: int, group: int, size: int) -> None:
    assert effective_group(columns, group) == size


def test_what_is_left_alone() -> None:
    weight = sample()
    table = convert("int4", weight, "embedding")
    assert isinstance(table, GroupwiseTensor)
    assert table.bits == 8
    assert convert("fp8", weight, "embedding") is weight
    assert convert("w8a8", weight, "embedding").inputs == "free"  # type: ignore[union-attr]
    assert convert("int8:activations=exact", weight, "embedding").inputs == "exact"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        ("int8", "free"), ("int8:activations=exact", "exact"), ("int4:activations=token", "token"), ("w8a8", "token"),
        ("fp8", "token"), ("fp8:scale=block", "group"), ("fp8:activations=exact", "exact"),
    ],
)  # fmt: skip
def test_how_activations_are_rounded(spec: str, inputs: str) -> None:
    made = convert(spec, sample())
    assert isinstance(made, (GroupwiseTensor, Float8Tensor))
    assert made.inputs == inputs


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("int9", "no weight format named 'int9'. Did you mean 'int8'?"),
        ("int4:groups=32", "has no option 'groups'. Did you mean 'group'?"),
        ("int4:group=many", "option group is 'many'; give a int"),
        ("int4:group=20", "group is 20; give a multiple of 16"),
        ("w8a8:group=-16", "give a multiple of 16"),
        ("int8:activations=int8", "activations is 'int8'. "),
        ("fp8:scale=row", "scale is 'row'. Known: channel, tensor, block"),
        ("dense:group=32", "takes no options"),
    ],
)
def test_mistakes(spec: str, sentence: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        WEIGHT_FORMATS.build(spec)
    assert sentence in str(error.value)


@pytest.mark.skipif(not native_available()[0], reason=native_available()[1])
@pytest.mark.parametrize(
    "spec",
    [
        "int8", "int8:group=0", "int8:group=32,symmetric=false", "w8a8", "int4", "int4:group=96",
        "int4:group=0,symmetric=true",
    ],
)  # fmt: skip
def test_the_plan_counts_what_the_native_kernels_hold(spec: str) -> None:
    ops = NativeOps(torch.bfloat16, 1)
    held = 0
    for role, outputs, inputs in matrices(SPEC):
        packed = ops.pack(convert(spec, torch.randn(outputs, inputs), role))
        held += packed.tensors[0].numel() * packed.tensors[0].element_size()
    assert WEIGHT_FORMATS.build(spec).num_bytes(SPEC, 2, "") == held


@pytest.mark.parametrize("spec", ["fp8", "fp8:scale=block", "dense"])
def test_the_plan_counts_floats(spec: str) -> None:
    held = 0
    for role, outputs, inputs in matrices(SPEC):
        made = convert(spec, torch.randn(outputs, inputs).bfloat16(), role)
        parts = [made] if isinstance(made, torch.Tensor) else [made.values, made.scale]  # type: ignore[union-attr]
        held += sum(part.numel() * part.element_size() for part in parts)
    assert WEIGHT_FORMATS.build(spec).num_bytes(SPEC, 2, "") == held
