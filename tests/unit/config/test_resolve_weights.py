"""What weights take in each format, by hand, and which kernels hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.config.plans import CUDA, SMOLLM2, plan

from nonet.config.memory import KEPT_FORMS
from nonet.core.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "linear_bits", "embedding_bits"),
    [
        # codes, and 16 bits of scale for 192 or 256 inputs, or 32 bits of scale and minimum for a group
        ("int8:group=0", None, 8 + 16 / 192),
        ("int8", 8.5, 8.5),
        ("int8:group=32,symmetric=false", 9, 9),
        ("int4", 5, 8.5),
        ("int4:group=64", 4.5, 8.5),
    ],
)
def test_rounded_weights_by_hand(
    spec: str, linear_bits: float | None, embedding_bits: float
) -> None:
    embedding = 49152 * 576
    linears = 134_479_872 - embedding
    held = plan(weight_format=spec).memory.weight_bytes
    if linear_bits is None:
        by_width = {576: 30 * (960 + 576 + 3072) * 576, 1536: 30 * 576 * 1536}
        assert sum(by_width.values()) == linears
        numbers = by_width[576] // 192 + by_width[1536] // 256
        assert held == linears + 2 * numbers + int(embedding * embedding_bits / 8)
    else:
        assert held == (linears * linear_bits + embedding * embedding_bits) / 8


def test_a_form_that_kernels_do_not_keep_is_counted_dense() -> None:
    dense = plan().memory.weight_bytes
    assert plan(weight_format="int8", kernels="reference").memory.weight_bytes == dense
    on_gpu = replace(CUDA, has_triton=True)
    codes = plan(weight_format="int4").memory.weight_bytes
    assert plan(machine=on_gpu, weight_format="int4").memory.weight_bytes == codes < dense / 2
    embedding = 49152 * 576
    scales = 4 * 30 * (960 + 576 + 3072 + 576)
    fp8 = plan(machine=on_gpu, weight_format="fp8")
    assert fp8.memory.weight_bytes == dense - (134_479_872 - embedding) + scales
    assert set(KEPT_FORMS) < {"native", "reference", "triton"}


def test_kernels_step_aside_for_a_weight_format() -> None:
    resolved = plan(weight_format="fp8:scale=block")
    assert resolved.kernels == "reference"
    assert resolved.reasons["kernels"] == "the native CPU kernels have no 8-bit floats"
    on_gpu = replace(CUDA, has_triton=True)
    assert plan(machine=on_gpu, weight_format="w8a8").kernels == "triton"
    grouped = plan(machine=on_gpu, weight_format="w8a8:group=128")
    assert grouped.kernels == "reference"
    assert "gives an output several scales" in grouped.reasons["kernels"]
    with pytest.raises(
        ConfigError, match="integers_by_group and kernels triton exclude each other"
    ):
        plan(machine=on_gpu, weight_format="w8a8:group=128", kernels="triton")
    # A group as wide as the widest matrix cuts none.
    assert plan(machine=on_gpu, weight_format="w8a8:group=1536").kernels == "triton"
    assert plan(weight_format="w8a8:group=128").kernels == "native"
    assert plan(weight_format="w8a8").kernels == "native"


def test_native_weights_by_hand(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    kinds = gguf.GGMLQuantizationType
    # a row of 256 weights, in bytes of the file
    for name, kind, row_bytes in (
        ("four", kinds.Q4_1, 8 * 20),
        ("five", kinds.Q5_0, 8 * 22),
        ("six", kinds.Q6_K, 210),
    ):
        writer.add_tensor(name, np.zeros((3, row_bytes), np.uint8), raw_dtype=kind)
    writer.add_tensor("dense", np.zeros((3, 256), np.float32))
    writer.add_tensor("norm", np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    each = 3 * 256
    held = each * 20 // 32 + each * 36 // 32 + each * 20 // 16 + each * 2
    assert plan(path=str(file), weight_format="native").memory.weight_bytes == held


def test_a_file_of_floats_holds_no_native_weights(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tensor("wide", np.zeros((3, 256), np.float32))
    writer.add_tensor("half", np.zeros((3, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="holds no block formats, integer codes or 8-bit floats"):
        plan(path=str(file), weight_format="native")


@pytest.mark.parametrize(("bits", "each"), [(4, 0.5 + 4 / 32), (8, 1 + 4 / 32)])
def test_native_weights_of_a_quantised_checkpoint(bits: int, each: float) -> None:
    stored = replace(SMOLLM2, code_bits=bits)
    embeddings = 49152 * 576
    linears = SMOLLM2.num_parameters - embeddings
    held = plan(stored, weight_format="native", dtype="bfloat16").memory.weight_bytes
    assert held == int(linears * each + embeddings * 2)
