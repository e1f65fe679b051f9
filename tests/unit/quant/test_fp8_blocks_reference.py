"""Blocks of 128 x 128: transformers writes and reads the checkpoint; our weights are its own to the last bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoint_writers import open_table
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize, _dequantize_fp8_weight

from nonet.quant.checkpoints import scaled

BLOCK = 128
CONFIG = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
}  # fmt: skip
TINY = {
    "vocab_size": 96, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip


def written(
    name: str, weight: torch.Tensor, scale_format: str = "float"
) -> dict[str, torch.Tensor]:
    """What transformers stores of a matrix. It takes whole blocks only, so one with a rest is filled up with zeros,
    which no scale sees, and cut off again: that is how such matrices are published."""
    rows, columns = weight.shape
    rest = (0, -columns % BLOCK, 0, -rows % BLOCK)
    options = SimpleNamespace(weight_block_size=(BLOCK, BLOCK), scale_fmt=scale_format)
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=options))
    stored = quantizer.convert({name: torch.nn.functional.pad(weight, rest)})
    return stored | {name: stored[name][:rows, :columns].contiguous()}


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Blocks of very different sizes, one of them all zeros, so that no scale can stand for another."""
    torch.manual_seed(rows * 1000 + columns)
    sizes = 10.0 ** torch.randint(-3, 2, (-(-rows // BLOCK), -(-columns // BLOCK)))
    sizes[0, -1] = 0.0
    grid = sizes.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return torch.randn(rows, columns) * grid[:rows, :columns]


@pytest.mark.parametrize("scale_format", ["float", "ue8m0"])
@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (129, 127), (40, 256), (1, 513)])
def test_a_matrix_and_its_rest(shape: tuple[int, int], scale_format: str) -> None:
    weight = matrix(*shape)
    stored = written("layer.weight", weight, scale_format)
    values, scale = stored["layer.weight"], stored["layer.weight_scale_inv"]
    assert scale.element_size() == (4 if scale_format == "float" else 1)
    ours = open_table(stored, CONFIG).load("layer.weight")
    theirs = _dequantize_fp8_weight(values, scale, [BLOCK, BLOCK], torch.float32)
    assert torch.equal(ours, theirs.to(ours.dtype))
    worst = (ours.float() - weight).abs() / weight.abs().clamp(min=1e-9)
    # Three bits of mantissa; the smallest numbers of a block are below its smallest exponent.
    assert worst.median() < 2**-4


def test_the_check_rejects_blocks_counted_over_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid stretched evenly over the matrix is right for whole blocks and wrong for all others."""

    def stretched(weight: scaled.ScaledWeight) -> torch.Tensor:
        (rows, columns), (high, wide) = weight.values.shape, weight.scale.shape
        spread = weight.scale[torch.arange(rows) * high // rows][
            :, torch.arange(columns) * wide // columns
        ]
        return weight.values.float() * spread

    monkeypatch.setattr(scaled.ScaledWeight, "dense", stretched)
    for (rows, columns), is_right in (((256, 384), True), ((200, 300), False), ((256, 300), False)):
        stored = written("layer.weight", matrix(rows, columns))
        theirs = _dequantize_fp8_weight(
            stored["layer.weight"], stored["layer.weight_scale_inv"], [BLOCK, BLOCK], torch.float32
        )
        ours = open_table(stored, CONFIG).load("layer.weight")
        assert torch.equal(ours, theirs) == is_right


def test_a_checkpoint_reads_as_the_model_that_transformers_loads(tmp_path: Path) -> None:
    """Without a GPU transformers dequantises what it loads: each weight of its model is the reference."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        tensors |= written(name, weight * 3) if "_proj." in name else {name: weight}
    model.config.quantization_config = CONFIG
    model.config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    source = open_table(load_file(tmp_path / "model.safetensors"), CONFIG)
    assert set(source.names()) == set(theirs)
    for name, weight in theirs.items():
        assert torch.equal(source.load(name), weight), name
    assert sum(name.endswith("weight_scale_inv") for name in tensors) == 7
