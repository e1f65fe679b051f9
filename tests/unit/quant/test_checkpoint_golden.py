"""Every layout against what its reference library makes of the same tensors, to the last bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from checkpoint_writers import open_table
from safetensors.torch import load_file

from nonet.kernels.float8 import Float8Tensor
from nonet.quant.checkpoints import awq, gptq, scaled
from nonet.quant.checkpoints.affine import AffineWeight, unpack_words

GOLDEN = Path(__file__).parent / "golden"
RECORDS = ("golden", "gptqmodel")
CONFIGS = {
    case: config
    for record in RECORDS
    for case, config in json.loads((GOLDEN / f"{record}.json").read_text()).items()
}
TENSORS = {
    name: tensor
    for record in RECORDS
    for name, tensor in load_file(GOLDEN / f"{record}.safetensors").items()
}


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
    codes = open_table(stored(case), CONFIGS[case]).load_codes("layer.weight")
    if case.endswith("-act"):
        assert codes is None
        return
    if case.startswith(("fp8", "float")):
        assert codes is None  # inputs are to meet them unrounded, or their blocks are no kernel's
        return
    assert codes is not None
    expected = TENSORS[f"{case}.expected"]
    assert codes.codes.dtype == torch.uint8
    assert codes.bits == (8 if "8" in case else 4)
    assert torch.equal(codes.dequantize().to(expected.dtype), expected)


@pytest.mark.parametrize("case", ["float-channel", "float-tensor"])
def test_floats_to_be_met_by_rounded_inputs_stay_as_they_are(case: str) -> None:
    config = copy.deepcopy(CONFIGS[case])
    config["config_groups"]["group_0"]["input_activations"] = {"type": "float", "num_bits": 8}
    kept = open_table(stored(case), config).load_codes("layer.weight")
    assert isinstance(kept, Float8Tensor)
    expected = TENSORS[f"{case}.expected"]
    given = stored(case)["layer.weight"]
    assert torch.equal(kept.values.view(torch.uint8), given.view(torch.uint8))
    assert torch.equal(kept.dequantize().to(expected.dtype), expected)
    assert kept.inputs == "token"


def test_the_check_rejects_a_wrong_order_of_nibbles(monkeypatch: pytest.MonkeyPatch) -> None:
    for order in (range(8), (0, 2, 4, 6, 1, 3, 5, 7)):
        monkeypatch.setattr(awq, "NIBBLE_OF_COLUMN", tuple(order))
        assert not torch.equal(dequantised("awq"), TENSORS["awq.expected"])


@pytest.mark.parametrize("case", ["gptq4", "gptq8", "gptq4-act", "v1-gptq4", "v1-gptq8"])
def test_the_check_rejects_zeros_off_by_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "ONES", {4: 0, 8: 0})
    assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])


@pytest.mark.parametrize(("case", "other"), [("v2-gptq4", "gptq"), ("v1-gptq8", "gptq_v2")])
def test_the_version_of_gptq_has_two_names_and_matters(case: str, other: str) -> None:
    expected = TENSORS[f"{case}.expected"]
    config = {key: one for key, one in CONFIGS[case].items() if key != "checkpoint_format"}
    assert torch.equal(open_table(stored(case), config).load("layer.weight"), expected)
    wrong = config | {"format": other}
    assert not torch.equal(open_table(stored(case), wrong).load("layer.weight"), expected)


def test_zeros_of_version_1_borrow_from_their_neighbours() -> None:
    """The record has zeros of 0, and taking one from each field by itself would give other weights."""
    words = stored("v1-gptq4")["layer.qzeros"]
    zeros = unpack_words(stored("v2-gptq4")["layer.qzeros"], 4, dim=1)
    assert (zeros == 0).any()
    by_fields = (unpack_words(words, 4, dim=1) + 1) % 16
    assert not torch.equal(by_fields, zeros)


@pytest.mark.parametrize("case", ["pack4-asym", "int8-asym", "awq"])
def test_the_check_rejects_a_shifted_zero(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(weight: AffineWeight) -> torch.Tensor:
        scale, zero = weight.scale[:, weight.group_of], weight.zero[:, weight.group_of] + 1
        return (weight.codes.to(torch.int32) - zero).to(scale.dtype) * scale

    monkeypatch.setattr(AffineWeight, "dense", shifted)
    assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])


@pytest.mark.parametrize("case", ["gptq4-act", "v2-gptq4-act", "v2-gptq8-act"])
def test_the_check_rejects_an_ignored_act_order(case: str) -> None:
    tensors = stored(case)
    del tensors["layer.g_idx"]
    ours = open_table(tensors, CONFIGS[case]).load("layer.weight")
    assert not torch.equal(ours, TENSORS[f"{case}.expected"])


def test_the_check_rejects_swapped_block_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = scaled.ScaledWeight.dense

    def swapped(weight: scaled.ScaledWeight) -> torch.Tensor:
        grid = weight.scale.t().reshape(weight.scale.shape)
        return right(scaled.ScaledWeight(weight.values, grid, weight.block))

    monkeypatch.setattr(scaled.ScaledWeight, "dense", swapped)
    for case in ("fp8", "float-block"):
        assert not torch.equal(dequantised(case), TENSORS[f"{case}.expected"])
