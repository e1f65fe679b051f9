"""A tiny Llama in every weight format, against transformers with the same rounded weights and rounded inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nonet.core.errors import ConfigError
from nonet.engine.llm import LLM
from nonet.engine.scorer import Scorer
from nonet.kernels.native import native_available
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.quant.formats.base import StoredMatrix
from tests.model.families import save

TOLERANCE = 1e-3
TOKENS = torch.randint(0, 199, (60,), generator=torch.Generator().manual_seed(5)).tolist()
PIECES = [TOKENS[at : at + 5] for at in range(0, 60, 5)]
Rounding = Callable[[torch.Tensor], torch.Tensor]


def to_int8(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def to_float8(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


# Format, what it does to the inputs of linears, and the kernels that hold it in float32.
CASES: list[tuple[str, Rounding | None, tuple[str, ...]]] = [
    ("int8", None, ("reference", "native")),
    ("int8:group=16,symmetric=false", None, ("reference", "native")),
    ("int4", None, ("reference", "native")),
    ("int4:group=16,symmetric=true", None, ("reference", "native")),
    ("fp8:activations=exact,scale=tensor", None, ("reference",)),
    ("w8a8", to_int8, ("reference", "native")),
    ("int4:activations=token", to_int8, ("reference", "native")),
    ("fp8", to_float8, ("reference",)),
    ("fp8:scale=block", to_float8, ("reference",)),
]


def round_weights(model: PreTrainedModel, spec: str) -> None:
    weight_format = WEIGHT_FORMATS.build(spec)
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            continue
        stored = StoredMatrix(dense=lambda p=parameter: p.detach(), codes=lambda: None)
        made = weight_format.convert(stored, "linear" if "layers." in name else "embedding")
        parameter.data = made if isinstance(made, torch.Tensor) else made.dequantize()


def round_inputs(model: PreTrainedModel, rounding: Rounding) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers." in name:
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))


@pytest.mark.parametrize(
    ("spec", "rounding", "kernels"),
    [(spec, rounding, one) for spec, rounding, all_kernels in CASES for one in all_kernels],
)
def test_logits_equal_transformers(
    spec: str, rounding: Rounding | None, kernels: str, tmp_path: Path
) -> None:
    if kernels == "native" and not native_available()[0]:
        pytest.skip(native_available()[1])
    oracle = save("llama", tmp_path)
    round_weights(oracle, spec)
    scorer = Scorer(tmp_path, weight_format=spec, kernels=kernels, threads=1)
    with torch.no_grad():
        weights_alone = [oracle(torch.tensor([piece])).logits[0] for piece in PIECES]
        if rounding is not None:
            round_inputs(oracle, rounding)
        expected = [oracle(torch.tensor([piece])).logits[0] for piece in PIECES]
    errors = [distance(scorer.logits(p), e) for p, e in zip(PIECES, expected, strict=True)]
    if rounding is None:
        assert max(errors) < TOLERANCE
        return
    # An input near the middle of two codes may fall the other way once in many, and then everything after it differs.
    assert sum(error < TOLERANCE for error in errors) >= 0.75 * len(PIECES), errors
    effects = [distance(a, e) for a, e in zip(weights_alone, expected, strict=True)]
    assert min(effects) > 10 * TOLERANCE, "rounding must show"


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_formats_from_the_front_door(tmp_path: Path) -> None:
    save("llama", tmp_path)
    common = {"dtype": "float32", "num_blocks": 64, "max_model_len": 128}
    with LLM(str(tmp_path), quant="int4:group=16", **common) as llm:
        assert llm.resolved.weight_format == "int4:group=16"
        assert llm.engine.info.weight_format == "int4:group=16"
        held = llm.resolved.memory.weight_bytes
    with LLM(str(tmp_path), quant="fp8", **common) as llm:
        assert llm.resolved.kernels == "reference"
    with LLM(str(tmp_path), **common) as llm:
        assert held < llm.resolved.memory.weight_bytes / 4
    with pytest.raises(ConfigError, match="weight_format fp8 and kernels native exclude"):
        LLM(str(tmp_path), quant="fp8", kernels="native", **common)
