"""Weights out of GGUF files, against the gguf package: bit for bit, since every product is exact in float32."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.real_models import real_model

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.gguf import BLOCK_LAYOUTS, GGUFFile
from nonet.core.model_spec import RopeScaling, RopeSpec
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.layers.rotary import inverse_frequencies
from nonet.weights.gguf_blocks import BLOCK_FORMATS, unpack_blocks
from nonet.weights.gguf_source import GGUFSource
from nonet.weights.spec import read_spec

gguf = pytest.importorskip("gguf")

# Where the float16 scales of a block begin; random bytes there would make infinities.
SCALES_AT = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # the gguf package cannot write the K formats


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Any bits at all in the codes and small scales, any finite float16 (denormals too) in the large ones."""
    block, num_bytes = BLOCK_LAYOUTS[kind]
    bits_of = np.random.default_rng(seed)
    blocks = bits_of.integers(0, 256, (rows * columns // block, num_bytes), np.uint8)
    for start in SCALES_AT[kind]:
        bits = bits_of.integers(0, 0x7C00, len(blocks), np.uint16)
        bits |= bits_of.integers(0, 2, len(blocks), np.uint16) << 15
        blocks[:, start : start + 2] = bits[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def reference(kind: str, blocks: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_every_block_format_is_bit_exact(kind):
    blocks = random_blocks(kind, 64, 1024)
    unpacked = unpack_blocks(kind, memoryview(blocks), 64, 1024)
    assert unpacked.codes.dtype == torch.uint8
    assert int(unpacked.codes.max()) < 2**unpacked.bits
    assert unpacked.group == (16 if kind == "Q6_K" else 32)
    assert unpacked.bits == (4 if kind.startswith("Q4") else 8)
    assert unpacked.scale.shape == unpacked.minimum.shape == (64, 1024 // unpacked.group)
    assert np.array_equal(unpacked.dequantize().numpy(), reference(kind, blocks))


@pytest.mark.parametrize("kind", WRITABLE)
def test_written_by_the_gguf_package(kind):
    weights = np.random.default_rng(1).normal(0, 0.02, (32, 256)).astype(np.float32)
    blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    unpacked = unpack_blocks(kind, memoryview(np.ascontiguousarray(blocks)), 32, 256)
    assert np.array_equal(unpacked.dequantize().numpy(), reference(kind, blocks))
    assert np.abs(unpacked.dequantize().numpy() - weights).max() < 0.02


def test_the_comparison_sees_a_swapped_nibble():
    """A mutant that exchanges the halves of each byte must not pass for Q4_0."""
    blocks = random_blocks("Q4_0", 8, 256)
    mutant = blocks.reshape(-1, 18).copy()
    mutant[:, 2:] = mutant[:, 2:] << 4 | mutant[:, 2:] >> 4
    unpacked = unpack_blocks("Q4_0", memoryview(np.ascontiguousarray(mutant)), 8, 256)
    assert not np.array_equal(unpacked.dequantize().numpy(), reference("Q4_0", blocks))


CONFIG = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


@pytest.fixture
def write(tmp_path: Path):
    def write(tensors, architecture="llama") -> Path:
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        for key, value in CONFIG.items():
            writer.add_uint32(f"{architecture}.{key}", value)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        given = {"token_embd.weight": ("F16", np.ones((300, 256), np.float16))} | tensors
        for name, (kind, values) in given.items():
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def test_float_tensors_keep_their_type(write):
    values = np.random.default_rng(2).normal(size=(4, 256)).astype(np.float32)
    brain = torch.from_numpy(values).bfloat16()
    path = write(
        {
            "output_norm.weight": ("F32", values[0].copy()),
            "blk.0.ffn_up.weight": ("F16", values.astype(np.float16)),
            "blk.0.ffn_down.weight": ("BF16", brain.view(torch.int16).numpy().view(np.uint8)),
        }
    )
    source = GGUFSource(path)
    assert source.load("model.norm.weight").equal(torch.from_numpy(values[0]))
    half = source.load("model.layers.0.mlp.up_proj.weight")
    assert half.equal(torch.from_numpy(values).half())
    loaded = source.load("model.layers.0.mlp.down_proj.weight")
    assert loaded.dtype == torch.bfloat16
    assert loaded.equal(brain)
    assert source.load_codes("model.layers.0.mlp.up_proj.weight") is None
    source.close()
    assert half.equal(torch.from_numpy(values).half())  # valid after close


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """What the conversion of a Llama checkpoint does to q and k."""
    return (
        rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


@pytest.mark.parametrize("part", ["q", "k"])
def test_rows_of_llama_q_and_k_are_put_back(write, part):
    heads = {"q": 4, "k": 2}[part]
    rows = heads * 64
    blocks = random_blocks("Q4_K", rows, 256, seed=3)
    bias = np.arange(rows, dtype=np.float32)
    tensors = {
        f"blk.1.attn_{part}.weight": ("Q4_K", interleave(blocks, heads)),
        f"blk.1.attn_{part}.bias": ("F32", interleave(bias, heads)),
    }
    source = GGUFSource(write(tensors))
    name = f"model.layers.1.self_attn.{part}_proj"
    wanted = reference("Q4_K", blocks)
    assert np.array_equal(source.load(f"{name}.weight").numpy(), wanted)
    codes = source.load_codes(f"{name}.weight")
    assert codes is not None
    assert np.array_equal(codes.dequantize().numpy(), wanted)
    assert np.array_equal(source.load(f"{name}.bias").numpy(), bias)
    untouched = GGUFSource(write(tensors, "qwen2"))
    assert not np.array_equal(untouched.load(f"{name}.bias").numpy(), bias)


def test_names(write):
    def small():
        return ("F32", np.zeros(256, np.float32))

    stems = ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm"]
    tensors = {f"blk.0.{stem}.weight": small() for stem in stems}
    tensors |= {"output_norm.weight": small(), "blk.07.attn_norm.weight": small()}
    tensors |= {f"blk.{'9' * 5000}.attn_norm.weight": small(), "blk.0.unknown.weight": small()}
    llama = set(GGUFSource(write(tensors)).names())
    assert llama == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    }
    gemma = set(GGUFSource(write(tensors, "gemma3")).names())
    assert gemma - llama == {
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
    }


def test_unreadable_kinds_and_uneven_heads_are_refused(write):
    tensors = {"blk.0.ffn_up.weight": ("IQ4_NL", np.zeros((256, 256 // 32 * 18), np.uint8))}
    with pytest.raises(UnsupportedModelError, match=r"IQ4_NL.*Q4_K"):
        GGUFSource(write(tensors))
    tensors = {"blk.0.attn_q.weight": ("F32", np.zeros((255, 256), np.float32))}
    with pytest.raises(ModelFileError, match="255 rows, which 4 heads"):
        GGUFSource(write(tensors))


def test_damaged_files_are_refused_or_read(write, tmp_path):
    """From spec to every tensor: a header with flipped bits or extreme numbers raises the two errors or nothing."""
    plain, _ = inverse_frequencies(RopeSpec(1e4), 64, 64)
    scaled, _ = inverse_frequencies(RopeSpec(1e4, RopeScaling("llama3", 8.0, 8192)), 64, 64)
    tensors = {
        "rope_freqs.weight": ("F32", (plain / scaled).numpy()),
        "output_norm.weight": ("F32", np.ones(256, np.float32)),
        "blk.0.attn_q.weight": ("Q4_K", random_blocks("Q4_K", 256, 256)),
        "blk.0.attn_q.bias": ("F32", np.ones(256, np.float32)),
        "blk.1.ffn_down.weight": ("Q6_K", random_blocks("Q6_K", 4, 256)),
        "blk.1.ffn_up.weight": ("BF16", np.ones((4, 512), np.uint8)),
    }
    sound = write(tensors).read_bytes()
    with GGUFFile.open(tmp_path / "llama.gguf") as file:
        header_bytes = min(info.offset for info in file.tensors.values())
    path = tmp_path / "damaged.gguf"
    bits = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(500):
        content = bytearray(sound)
        for _ in range(bits.choice((1, 1, 3))):
            place = bits.randrange(header_bytes)
            if bits.random() < 0.8:
                content[place] ^= 1 << bits.randrange(8)
            else:
                content[place : place + 4] = bits.choice((b"\0" * 4, b"\xff" * 4))
        path.write_bytes(content)
        try:
            read_everything(path)
        except (ModelFileError, UnsupportedModelError):
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > 50


def read_everything(path: Path) -> None:
    read_spec(path)
    source = GGUFSource(path)
    with np.errstate(all="ignore"):
        for name in source.names():
            assert tuple(source.load(name).shape) == source.shape(name)
            source.load_codes(name)
    source.close()


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2", "gemma-3-270m", "qwen2.5-coder-0.5b"])
def test_real_models(name):
    """One tensor of every kind and role, bit for bit; shapes of all."""
    path = real_model(name)
    spec = read_spec(path)
    source = GGUFSource(path)
    names = set(source.names())
    assert source.shape("model.embed_tokens.weight") == (spec.vocab_size, spec.hidden_size)
    assert {f"model.layers.{i}.mlp.up_proj.weight" for i in range(spec.num_layers)} <= names
    seen = set()
    with GGUFFile.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer_part in ("ffn_down", "ffn_up", "attn_v", "attn_output"):
            for layer in range(0, spec.num_layers, 5):
                info = file.tensors[f"blk.{layer}.{layer_part}.weight"]
                if info.kind in seen:
                    continue
                seen.add(info.kind)
                blocks = np.frombuffer(file.raw(info.name), np.uint8).reshape(info.shape[0], -1)
                part = {"ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj"}.get(layer_part)
                part = part or {"attn_v": "self_attn.v_proj"}.get(layer_part, "self_attn.o_proj")
                loaded = source.load(f"model.layers.{layer}.{part}.weight")
                assert np.array_equal(loaded.numpy(), reference(info.kind, blocks))
    assert seen
    assert isinstance(source.load_codes("model.layers.0.mlp.up_proj.weight"), GroupwiseTensor)
