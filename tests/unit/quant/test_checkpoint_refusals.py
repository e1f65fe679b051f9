"""What is not read is refused in a sentence: variants, contradictions, and patterns that could match for ever."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from checkpoint_writers import open_table, write_awq, write_gptq, write_packed
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.core.errors import ModelFileError, UnsupportedModelError, UserError
from nonet.core.fields import Fields
from nonet.quant.checkpoints.declared import check_method, declared_bits
from nonet.quant.checkpoints.patterns import matches

Tensors = dict[str, torch.Tensor]
CODES = torch.randint(0, 16, (8, 32))
ZEROS, SCALES = torch.full((8, 2), 8), torch.ones(8, 2).half()
G_IDX = torch.arange(32) // 16

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}
FP8 = {"quant_method": "fp8"}


def named(parts: Tensors) -> Tensors:
    return {f"layer.{name}": tensor for name, tensor in parts.items()}


def awq() -> Tensors:
    return named(write_awq(CODES, ZEROS, SCALES))


def gptq() -> Tensors:
    return named(write_gptq(CODES, ZEROS, SCALES, bits=4, g_idx=G_IDX, version=1))


def packed() -> Tensors:
    return named(write_packed(CODES, ZEROS, SCALES, bits=4))


def fp8(dtype: torch.dtype = torch.float8_e4m3fn) -> Tensors:
    return {"layer.weight": torch.ones(4, 8).to(dtype), "layer.weight_scale": torch.ones(1)}


def compressed(top: dict[str, object] | None = None, **weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": INT4 | weights}
    base = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return base | {"config_groups": {"g": group}} | (top or {})


SPARSE = {"sparsity_config": {"format": "sparse-24-bitmask"}}
ROTATED = {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}
UNSUPPORTED: dict[str, tuple[Callable[[], Tensors], dict[str, object], str]] = {
    "awq gemv": (awq, AWQ | {"version": "gemv"}, "'gemv' of 'autoawq' cannot be read"),
    "llm-awq": (awq, AWQ | {"backend": "llm-awq"}, "of 'llm-awq' cannot be read"),
    "awq 8 bits": (awq, AWQ | {"bits": 8}, "AWQ with 8 bits"),
    "gptq 3 bits": (gptq, GPTQ | {"bits": 3}, "weights of 3 bits cannot be read; 4 and 8 bits can"),
    "marlin": (gptq, GPTQ | {"checkpoint_format": "marlin"}, "'marlin' cannot be read; gptq, gptq_v2"),
    "marlin, old": (gptq, GPTQ | {"is_marlin_format": True}, "'marlin'"),
    "dynamic": (gptq, GPTQ | {"dynamic": {"-:.*": {}}}, "dynamic"),
    "nvfp4": (packed, compressed({"format": "nvfp4-pack-quantized"}), "'nvfp4-pack-quantized'"),
    "sparse": (packed, compressed(SPARSE), "'sparse-24-bitmask' cannot be read"),
    "rotated": (packed, compressed(ROTATED), "rotated weights"),
    "3 bits": (packed, compressed(num_bits=3), "weights of 3 bits"),
    "strategy": (packed, compressed(strategy="tensor_group"), "'tensor_group' cannot be read"),
    "float16 with a scale": (lambda: fp8(torch.float16), FP8, "dtype F16; nonet reads F8_E4M3"),
    "e5m2": (lambda: fp8(torch.float8_e5m2), FP8, "dtype F8_E5M2; nonet reads F8_E4M3"),
    "scaled bfloat16": (lambda: fp8(torch.bfloat16), compressed(), "dtype BF16; nonet reads I8"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_variants_that_are_not_read(case: str) -> None:
    tensors, config, sentence = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=sentence):
        open_table(tensors(), config)


def changed(tensors: Callable[[], Tensors], name: str, value: torch.Tensor | None) -> Tensors:
    table = tensors()
    if value is None:
        del table[f"layer.{name}"]
    else:
        table[f"layer.{name}"] = value
    return table


SHORT = torch.zeros(1, 1, dtype=torch.int32)
CONTRADICTIONS: dict[str, tuple[Tensors, dict[str, object], str]] = {
    "missing": (changed(awq, "qzeros", None), AWQ, "no tensor 'layer.qzeros'"),
    "type of words": (changed(gptq, "qweight", CODES.half()), GPTQ, "dtype F16; I32 is needed"),
    "type of scales": (changed(gptq, "scales", ZEROS.int()), GPTQ, "dtype I32; F32 or F16 or BF16"),
    "awq zeros": (changed(awq, "qzeros", SHORT), AWQ, r"qzeros has shape \(1, 1\); \(2, 1\)"),
    "awq scales": (awq(), AWQ | {"group_size": 8}, r"\(4, 1\) is needed"),
    "gptq scales": (changed(gptq, "scales", SHORT.half()), GPTQ, r"scales has shape \(1, 1\); \(2, 8\)"),
    "gptq g_idx": (changed(gptq, "g_idx", G_IDX[:3].int()), GPTQ, r"g_idx has shape \(3,\)"),
    "gptq groups": (changed(gptq, "g_idx", G_IDX.int() + 1), GPTQ, "beyond the 2 that have a scale"),
    "shape": (
        changed(packed, "weight_shape", torch.tensor([8, 99])), compressed(), r"says \[8, 99\]",
    ),
    "zero point": (changed(packed, "weight_zero_point", None), compressed(), "is missing, and"),
    "g_idx": (changed(packed, "weight_g_idx", G_IDX + 1), compressed(), "that have no scale"),
    "ignored": (packed(), compressed({"ignore": ["re:lay"]}), "ignores layer, but"),
    "untargeted": (
        packed(), compressed({"config_groups": {"g": {"targets": ["re:x"], "weights": INT4}}}),
        "no group of config_groups targets it",
    ),
    "values beyond the bits": (
        {"layer.weight": torch.full((8, 32), 8, dtype=torch.int8), "layer.weight_scale": SCALES},
        compressed(symmetric=True), "beyond 4 bits",
    ),
    "fp8 scale": (changed(fp8, "weight_scale", torch.ones(3)), FP8, r"has shape \(3,\); \(4,\)"),
    "fp8 grid": (
        changed(fp8, "weight_scale", torch.ones(8, 1)), FP8 | {"weight_block_size": [4, 1]},
        r"\(1, 8\) is needed",
    ),
    "fp8 blocks": (fp8(), FP8 | {"weight_block_size": [0, 128]}, "two sizes are needed"),
    "fp8 scale alone": (changed(fp8, "weight", None), FP8, "has no layer.weight to scale"),
    "nothing": ({"layer.weight": torch.ones(2, 2)}, GPTQ, "no tensor is stored in that layout"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions(case: str) -> None:
    tensors, config, sentence = CONTRADICTIONS[case]
    with pytest.raises(ModelFileError, match=sentence):
        open_table(tensors, config).load("layer.weight")


def test_what_config_says_without_torch() -> None:
    assert declared_bits(Fields(GPTQ, "")) == 4
    assert declared_bits(Fields(compressed(num_bits=8), "")) == 8
    assert declared_bits(Fields(compressed(type="float"), "")) is None
    assert declared_bits(Fields(FP8, "")) is None
    assert declared_bits(Fields(GPTQ | {"desc_act": True}, "")) is None
    assert declared_bits(Fields(GPTQ | {"desc_act": True, "group_size": -1}, "")) == 4
    assert declared_bits(Fields(compressed(actorder="group"), "")) is None
    assert declared_bits(Fields(compressed(actorder="static"), "")) == 4
    check_method(Fields(FP8, ""))
    with pytest.raises(UnsupportedModelError, match="'unnamed'"):
        check_method(Fields({}, "config.json"))


@pytest.mark.parametrize(
    ("entry", "module", "means"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("Linear", "model.layers.0.mlp.up_proj", True),
        ("Linear", "model.embed_tokens", False),
        ("re:.*down_proj", "model.layers.0.mlp.down_proj", True),
        ("re:down_proj", "model.layers.0.mlp.down_proj", False),
        ("re:model", "model.layers.0.mlp.down_proj", True),
        (r"re:.*layers\.(0|1)\..*", "model.layers.1.mlp.up_proj", True),
        (r"re:.*layers\.(0|1)\..*", "model.layers.2.mlp.up_proj", False),
    ],
)
def test_patterns(entry: str, module: str, means: bool) -> None:
    assert matches(module, [entry], "") == means


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*", ".*" * 9 + "x", "(a|a)" * 9, "a?" * 9, "a" * 501, "(a){9}"]
)
def test_patterns_that_could_match_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is not read"):
        matches("a" * 60, [f"re:{pattern}"], "ignore")


@pytest.mark.parametrize("entry", ["re:(", "re:[", 7, None])
def test_broken_entries_are_refused(entry: object) -> None:
    with pytest.raises(ModelFileError):
        matches("layer", [entry], "ignore")


KINDS = [torch.int32, torch.int8, torch.int64, torch.float16, torch.float32, torch.float8_e4m3fn]
SOUND = [
    (awq, AWQ), (gptq, GPTQ), (packed, compressed()), (fp8, FP8),
    (fp8, FP8 | {"weight_block_size": [128, 128]}), (fp8, compressed(strategy="channel")),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SOUND), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(KINDS), st.integers(-3, 40),
)  # fmt: skip
def test_a_wrong_tensor_is_a_mistake_of_the_file_or_does_no_harm(
    sound: tuple[Callable[[], Tensors], dict[str, object]],
    which: int, shape: list[int], dtype: torch.dtype, value: int,
) -> None:  # fmt: skip
    """Nothing but the errors that name the file's mistake comes out, whatever a part of a layout is replaced with."""
    write, config = sound
    tensors = write()
    name = sorted(tensors)[which % len(tensors)]
    tensors[name] = torch.full(shape, value).to(dtype)
    with suppress(UserError):
        source = open_table(tensors, config)
        assert source.load("layer.weight").shape == source.shape("layer.weight")
