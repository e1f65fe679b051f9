"""Every layout against what its reference library makes of the same tensors, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_writers import open_table
from safetensors.torch import load_file

from nonet.quant.checkpoints import awq, gptq, scaled
from nonet.quant.checkpoints.affine import AffineWeight

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = json.loads((GOLDEN / "golden.json").read_text())
TENSORS = load_file(GOLDEN / "golden.safetensors")


def stored(case: str) -> dict[str, torch.Tensor]:
    parts = {n.split(".", 1)[1]: t for n, t in TENSORS.items() if n.split(".")[0] == case}
    return {f"layer.{name}": tensor for name, tensor in parts.items() if name != "expected"}


def dequantised(case: str) -> torch.Tensor:
    return open_table(stored(case), CONFIGS[case]).load("layer.weight")


@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_weights_equal_the_reference_library(case: str) -> None:
    expected = TENSORS[f"{case}.expected"]
    ours = dequantised(case)
    assert ours.dtype == expected.dtype
    assert torch.equal(ours, expected)
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_codes_are_the_same_numbers(case: str) -> None:
    codes = open_table(stored(case), CONFIGS[case]).load_groupwise("layer.weight")
    if case.startswith(("fp8", "float")) or case.endswith("-act"):
        assert codes is None
        return
    assert codes is not None
    expected = TENSORS[f"{case}.expected"]
    assert codes.codes.dtype == torch.uint8
    assert codes.bits == (8 if "8" in case else 4)
    assert torch.equal(codes.dequantize().to(expected.dtype), expected)


def test_the_check_rejects_a_wrong_order_of_nibbles(monkeypatch: pytest.MonkeyPatch) -> None:
    for order in (range(8), (0, 2, 4, 6, 1, 3, 5, 7)):
        monkeypatch.setattr(awq, "NIBBLE_OF_COLUMN", tuple(order))
        assert not torch.equal(dequantised("awq"), TENSORS["awq.expected"])


@pytest.mark.parametrize("case", ["gptq4", "gptq8", "gptq4-act"])
def test_the_check_rejects_zeros_off_by_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "ONES", {4: 0, 8: 0})
    assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])


@pytest.mark.parametrize("case", ["pack4-asym", "int8-asym", "awq"])
def test_the_check_rejects_a_shifted_zero(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(weight: AffineWeight) -> torch.Tensor:
        scale, zero = weight.scale[:, weight.group_of], weight.zero[:, weight.group_of] + 1
        return (weight.codes.to(torch.int32) - zero).to(scale.dtype) * scale

    monkeypatch.setattr(AffineWeight, "dense", shifted)
    assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])


def test_the_check_rejects_an_ignored_act_order() -> None:
    tensors = stored("gptq4-act")
    del tensors["layer.g_idx"]
    ours = open_table(tensors, CONFIGS["gptq4-act"]).load("layer.weight")
    assert not torch.equal(ours, TENSORS["gptq4-act.expected"])


def test_the_check_rejects_swapped_block_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scaled.ScaledWeight.dense

    def swapped(weight: scaled.ScaledWeight) -> torch.Tensor:
        grid = weight.scale.t().reshape(weight.scale.shape)
        return right(scaled.ScaledWeight(weight.values, grid, weight.block))

    monkeypatch.setattr(scaled.ScaledWeight, "dense", swapped)
    for case in ("fp8", "float-block"):
        assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])
