"""Round trips of every layout with random shapes, and of the corners that the golden files do not reach."""

from __future__ import annotations

import pytest
import torch
from checkpoint_writers import open_table, pack_words, write_awq, write_gptq, write_packed
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.kernels.float8 import Float8Tensor
from nonet.quant.checkpoints import CHECKPOINT_FORMATS
from nonet.quant.checkpoints.source import QuantizedSource

QUICK = settings(max_examples=25, deadline=None)
GROUPS = st.sampled_from([8, 16, 32, -1])
SEEDS = st.integers(0, 2**31)
HALVES = st.sampled_from([torch.float16, torch.bfloat16])


def draw(
    seed: int, rows: int, columns: int, group: int, bits: int, dtype: torch.dtype, low: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes [N, K], zeros from `low` on and scales [N, G]."""
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group < 0 else columns // group
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    zeros = torch.randint(low, 2**bits, (rows, groups), generator=generator)
    scales = (torch.rand(rows, groups, generator=generator) * 0.1 + 1e-4).to(dtype)
    return codes, zeros, scales


def expected(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor
) -> torch.Tensor:
    exact = (codes - zeros[:, group_of]).double() * scales[:, group_of].double()
    return exact.to(scales.dtype)


def check(source: QuantizedSource, wanted: torch.Tensor, has_codes: bool = True) -> None:
    assert list(source.names()) == ["layer.weight"]
    assert source.shape("layer.weight") == tuple(wanted.shape)
    assert torch.equal(source.load("layer.weight"), wanted)
    codes = source.load_codes("layer.weight")
    assert (codes is not None) == has_codes
    if codes is not None:
        kept = codes.values if isinstance(codes, Float8Tensor) else codes.codes
        assert kept.is_contiguous()
        assert codes.shape == tuple(wanted.shape)
        assert codes.scale.shape == (wanted.shape[0], -(-wanted.shape[1] // codes.group))
        assert torch.equal(codes.dequantize().to(wanted.dtype), wanted)


def named(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"layer.{name}": tensor for name, tensor in parts.items()}


@QUICK
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), GROUPS, HALVES)
def test_awq(seed: int, octets: int, blocks: int, group: int, dtype: torch.dtype) -> None:
    codes, zeros, scales = draw(seed, 8 * octets, 32 * blocks, group, 4, dtype)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM"}
    group_of = torch.arange(32 * blocks) // (32 * blocks if group < 0 else group)
    source = open_table(named(write_awq(codes, zeros, scales)), config)
    check(source, expected(codes, zeros, scales, group_of))


@QUICK
@given(
    SEEDS, st.integers(1, 4), st.integers(1, 3), GROUPS, HALVES,
    st.sampled_from([4, 8]), st.sampled_from([1, 2]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_gptq(
    seed: int, octets: int, blocks: int, group: int, dtype: torch.dtype,
    bits: int, version: int, symmetric: bool, act_order: bool,
) -> None:  # fmt: skip
    columns = 32 * blocks
    codes, zeros, scales = draw(seed, 8 * octets, columns, group, bits, dtype)
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    group_of = torch.arange(columns) // (columns if group < 0 else group)
    regular = True
    if act_order:
        generator = torch.Generator().manual_seed(seed)
        shuffled = group_of[torch.randperm(columns, generator=generator)]
        regular, group_of = torch.equal(shuffled, group_of), shuffled
    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order,
        "sym": symmetric, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    parts = write_gptq(codes, zeros, scales, bits=bits, g_idx=group_of, version=version)
    check(open_table(named(parts), config), expected(codes, zeros, scales, group_of), regular)


def test_symmetric_4_bit_gptq_is_written_as_sevens() -> None:
    """The well known look of version 1: a symmetric zero of 8 is stored as 7."""
    codes, zeros, scales = draw(1, 8, 32, 32, 4, torch.float16)
    parts = write_gptq(
        codes, torch.full_like(zeros, 8), scales, bits=4, g_idx=torch.zeros(32), version=1
    )
    assert (parts["qzeros"] == 0x77777777).all()


def compressed(kind: str, **weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "num_bits": 8, **weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"g": group}}


@QUICK
@given(
    SEEDS, st.integers(1, 21), st.integers(1, 3), GROUPS, HALVES,
    st.sampled_from([4, 8]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_pack_quantized(
    seed: int, rows: int, blocks: int, group: int, dtype: torch.dtype,
    bits: int, symmetric: bool, act_order: bool,
) -> None:  # fmt: skip
    columns = 32 * blocks
    codes, zeros, scales = draw(seed, rows, columns, group, bits, dtype)
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    group_of = torch.arange(columns) // (columns if group < 0 else group)
    parts = write_packed(codes, None if symmetric else zeros, scales, bits=bits)
    regular = True
    if act_order:
        generator = torch.Generator().manual_seed(seed)
        shuffled = group_of[torch.randperm(columns, generator=generator)]
        regular, group_of = torch.equal(shuffled, group_of), shuffled
        parts["weight_g_idx"] = group_of.to(torch.int32)
    strategy = {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
    config = compressed("pack-quantized", num_bits=bits, symmetric=symmetric, **strategy)
    check(open_table(named(parts), config), expected(codes, zeros, scales, group_of), regular)


@QUICK
@given(SEEDS, st.integers(1, 20), st.integers(1, 40), st.sampled_from([4, 8]))
def test_packed_rows_may_end_inside_a_word(seed: int, rows: int, columns: int, bits: int) -> None:
    codes, zeros, scales = draw(seed, rows, columns, -1, bits, torch.float16)
    config = compressed("pack-quantized", num_bits=bits, symmetric=False, strategy="channel")
    source = open_table(named(write_packed(codes, zeros, scales, bits=bits)), config)
    check(source, expected(codes, zeros, scales, torch.zeros(columns, dtype=torch.long)))


@QUICK
@given(SEEDS, st.integers(1, 20), st.integers(1, 40), HALVES, st.booleans(), st.booleans())
def test_int_quantized(
    seed: int, rows: int, columns: int, dtype: torch.dtype, symmetric: bool, per_tensor: bool
) -> None:
    codes, zeros, scales = draw(seed, rows, columns, -1, 8, dtype)
    if per_tensor:
        zeros, scales = zeros[:1], scales[:1]
    if symmetric:
        zeros = torch.full_like(zeros, 128)
    stored_scale = scales.view(1) if per_tensor else scales
    parts = {"weight": (codes - 128).to(torch.int8), "weight_scale": stored_scale}
    if not symmetric:
        parts["weight_zero_point"] = (zeros - 128).view(stored_scale.shape).to(torch.int8)
    strategy = "tensor" if per_tensor else "channel"
    config = compressed("int-quantized", symmetric=symmetric, strategy=strategy)
    group_of = torch.zeros(columns, dtype=torch.long)
    wanted = expected(codes, zeros.expand(rows, 1), scales.expand(rows, 1), group_of)
    check(open_table(named(parts), config), wanted)


def float8(seed: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * 100
    return values.clamp(-448, 448).to(torch.float8_e4m3fn)


@QUICK
@given(
    SEEDS, st.integers(1, 300), st.integers(1, 300),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e8m0fnu]),
)  # fmt: skip
def test_fp8_blocks_of_128(seed: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    values = float8(seed, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) + 0.01
    scale = grid.to(dtype)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    out_type = torch.bfloat16 if dtype == torch.float8_e8m0fnu else dtype
    wanted = torch.empty(rows, columns, dtype=out_type)
    for r in range(0, rows, 128):
        for c in range(0, columns, 128):
            part = values[r : r + 128, c : c + 128].float() * scale[r // 128, c // 128].float()
            wanted[r : r + 128, c : c + 128] = part.to(out_type)
    parts = {"weight": values, "weight_scale_inv": scale}
    check(open_table(named(parts), config), wanted)


@QUICK
@given(SEEDS, st.integers(2, 40), st.integers(1, 40), st.sampled_from(["", "1", "n", "n1"]))
def test_fp8_scales_per_tensor_and_per_output(
    seed: int, rows: int, columns: int, kind: str
) -> None:
    values = float8(seed, rows, columns)
    shape = {"": (), "1": (1,), "n": (rows,), "n1": (rows, 1)}[kind]
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.01
    wanted = values.float() * (scale.view(-1, 1) if kind.startswith("n") else scale)
    for method in ("fp8", "fbgemm_fp8"):
        parts = {"layer.weight": values, "layer.weight_scale": scale}
        source = open_table(parts, {"quant_method": method, "activation_scheme": "dynamic"})
        check(source, wanted)


def test_static_activation_scales_and_other_tensors_stay_readable() -> None:
    tensors = {
        "layer.weight": float8(0, 4, 8),
        "layer.weight_scale": torch.tensor(0.5),
        "layer.input_scale": torch.tensor(0.25),
        "layer.bias": torch.ones(4),
        "lm_head.weight": torch.ones(2, 2).half(),
    }
    source = open_table(tensors, {"quant_method": "fp8", "activation_scheme": "static"})
    assert set(source.names()) == {
        "layer.weight",
        "layer.input_scale",
        "layer.bias",
        "lm_head.weight",
    }
    assert source.load("layer.input_scale").item() == 0.25
    assert source.load("lm_head.weight").dtype == torch.float16
    assert source.load_codes("lm_head.weight") is None
    assert source.shape("layer.bias") == (4,)


@pytest.mark.parametrize("order", [tuple(range(8)), (0, 4, 1, 5, 2, 6, 3, 7)])
def test_the_check_rejects_awq_written_in_another_order(order: tuple[int, ...]) -> None:
    codes, zeros, scales = draw(3, 16, 32, 16, 4, torch.float16)
    config = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    source = open_table(named(write_awq(codes, zeros, scales, order)), config)
    wanted = expected(codes, zeros, scales, torch.arange(32) // 16)
    assert not torch.equal(source.load("layer.weight"), wanted)


def test_the_check_rejects_versions_mistaken_for_each_other() -> None:
    codes, zeros, scales = draw(4, 8, 32, 32, 4, torch.float16, low=1)
    group_of = torch.zeros(32, dtype=torch.long)
    parts = write_gptq(codes, zeros, scales, bits=4, g_idx=group_of, version=1)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    ours = open_table(named(parts), config).load("layer.weight")
    assert torch.equal(ours, expected(codes, zeros - 1, scales, group_of))
    assert not torch.equal(ours, expected(codes, zeros, scales, group_of))


def test_the_writer_packs_low_bits_first() -> None:
    assert pack_words(torch.tensor([[1, 2, 0, 0, 0, 0, 0, 15]]), 4, 1).tolist() == [[-0x0FFFFFDF]]
    assert pack_words(torch.tensor([[1], [2], [3], [4]]), 8, 0).tolist() == [[0x04030201]]


def test_the_catalogue_is_complete() -> None:
    assert CHECKPOINT_FORMATS.names() == ["awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq"]
