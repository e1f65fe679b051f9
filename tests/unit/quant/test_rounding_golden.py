"""Rounded weights against torchao's (recorded), transformers' and gguf's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from nonet.quant.rounding import round_to_float8, round_to_integers

GOLDEN = load_file(Path(__file__).parent / "golden" / "rounded.safetensors")
WEIGHT = GOLDEN["weight"]
ROWS, COLUMNS = WEIGHT.shape
INTEGERS = {
    "int8-channel": (8, COLUMNS),
    "int8-32": (8, 32),
    "int4-32": (4, 32),
    "int4-96": (4, 96),
}
FLOATS = {"fp8-channel": (1, COLUMNS), "fp8-tensor": (ROWS, COLUMNS), "fp8-block": (8, 64)}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_equal_torchao(name: str) -> None:
    bits, group = INTEGERS[name]
    made = round_to_integers(WEIGHT, bits=bits, group=group, symmetric=True, inputs="exact")
    scale = GOLDEN[f"{name}.scale"].half().float()
    assert torch.equal(made.scale, scale.view_as(made.scale))
    assert torch.equal(made.dequantize(), GOLDEN[f"{name}.expected"])


@pytest.mark.parametrize("name", FLOATS)
def test_floats_equal_torchao(name: str) -> None:
    made = round_to_float8(WEIGHT, block=FLOATS[name], inputs="exact")
    assert torch.equal(made.values.float(), GOLDEN[f"{name}.values"].float())
    assert torch.equal(made.dequantize(), GOLDEN[f"{name}.expected"])


def test_the_check_rejects_other_blocks() -> None:
    made = round_to_float8(WEIGHT, block=(64, 8), inputs="exact")
    assert not torch.equal(made.dequantize(), GOLDEN["fp8-block.expected"])


def nearly_all_equal(ours: np.ndarray, theirs: np.ndarray, step: np.ndarray) -> bool:
    """Scales that were rounded in another order move values near the middle of two codes, by one step."""
    is_near = np.abs(ours - theirs) <= step * 1.01
    return bool(is_near.all() and (np.abs(ours - theirs) <= 1e-3 * step).mean() > 0.97)


@pytest.mark.parametrize("block", [(128, 128), (32, 64), None])
def test_blocks_of_floats_are_those_of_transformers(block: tuple[int, int] | None) -> None:
    torch.manual_seed(1)
    weight = torch.randn(256, 384) * 0.05
    config = SimpleNamespace(
        weight_block_size=block, scale_fmt="float", activation_scheme="dynamic"
    )
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    stored = quantizer.convert({"layer.weight": weight})
    inverse = stored["layer.weight_scale_inv"].float()
    height, width = block or weight.shape
    grid = inverse.view(256 // height, 384 // width).repeat_interleave(height, 0)
    theirs = stored["layer.weight"].float() * grid.repeat_interleave(width, 1)
    made = round_to_float8(weight, block=(height, width), inputs="exact")
    ours = made.dequantize()
    torch.testing.assert_close(made.scale, grid, rtol=1e-6, atol=0)
    step = (ours.abs() / 8 + 2**-9 * grid.repeat_interleave(width, 1)).numpy()
    assert nearly_all_equal(ours.numpy(), theirs.numpy(), step)


@pytest.mark.parametrize(
    ("kind", "bits", "symmetric"),
    [(gguf.GGMLQuantizationType.Q8_0, 8, True), (gguf.GGMLQuantizationType.Q4_1, 4, False)],
)
def test_groups_of_32_are_the_blocks_of_a_gguf_file(
    kind: gguf.GGMLQuantizationType, bits: int, symmetric: bool
) -> None:
    weight = np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32) * 0.05
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    made = round_to_integers(
        torch.from_numpy(weight), bits=bits, group=32, symmetric=symmetric, inputs="exact"
    )
    step = made.scale.repeat_interleave(32, 1).numpy()
    assert nearly_all_equal(made.dequantize().numpy(), theirs, step)
    shifted = made.dequantize().numpy() + step  # mutant: a zero point off by one
    assert not nearly_all_equal(shifted, theirs, step * 0.5)
