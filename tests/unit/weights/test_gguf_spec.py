"""GGUF metadata to ModelSpec: the conversion's own keys, its implicit choices, and refusal of the rest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.model_spec import RopeScaling, RopeSpec
from nonet.weights.spec import read_spec

gguf = pytest.importorskip("gguf")

BASE = {
    "block_count": 6,
    "context_length": 2048,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
EMBEDDING = {"token_embd.weight": np.zeros((300, 64), np.float32)}


@pytest.fixture
def spec_of(tmp_path: Path):
    """A file of one architecture; keys without a dot-prefix of their own belong to the architecture."""

    def spec_of(architecture="llama", config=None, top=None, tensors=None):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        for key, value in (BASE | (config or {})).items():
            if value is not None:
                add(writer, f"{architecture}.{key}", value)
        for key, value in (top or {}).items():
            add(writer, key, value)
        for name, tensor in (EMBEDDING | (tensors or {})).items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return read_spec(path)

    return spec_of


def add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def test_llama(spec_of):
    spec = spec_of(config={"rope.freq_base": 5e5, "rope.dimension_count": 16})
    assert (spec.family, spec.vocab_size, spec.hidden_size) == ("llama", 300, 64)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (6, 4, 2, 16)
    assert (spec.intermediate_size, spec.max_position) == (128, 2048)
    assert spec.norm_eps == pytest.approx(1e-5)
    assert spec.rope == RopeSpec(5e5)
    assert spec.tie_embeddings
    assert spec.windows == (None,) * 6
    assert not any((spec.qkv_bias, spec.qk_norm, spec.norm_offset, spec.sandwich_norm))


def test_what_the_tensors_say(spec_of):
    tensors = {
        "output.weight": np.zeros((300, 64), np.float32),
        "blk.0.attn_q.weight": np.zeros((64, 64), np.float16),
        "blk.0.attn_q.bias": np.zeros(64, np.float32),
    }
    spec = spec_of("qwen2", tensors=tensors)
    assert not spec.tie_embeddings
    assert spec.qkv_bias
    assert not spec.output_bias
    assert spec.dtype == "float16"


def test_gemma_choices_that_the_file_leaves_open(spec_of):
    config = {"attention.key_length": 32, "attention.value_length": 32}
    spec = spec_of("gemma3", config | {"attention.sliding_window": 128, "rope.freq_base": 1e6})
    assert spec.windows == (128,) * 5 + (None,)
    assert (spec.rope, spec.rope_local) == (RopeSpec(1e6), RopeSpec(1e4))
    assert spec.scale == 32**-0.5
    assert spec.embedding_scale == math.sqrt(64)
    assert spec.qk_norm
    assert spec.sandwich_norm
    assert not spec.norm_offset
    assert spec.activation == "gelu_tanh"
    large = spec_of("gemma3", config | {"block_count": 62})
    assert large.scale == (64 / 4) ** -0.5
    listed = [True, False, True, True, False, True]
    spec = spec_of(
        "gemma3",
        {"attention.sliding_window": 9, "attention.sliding_window_pattern": listed}
        | {"rope.freq_base_swa": 2e4, "final_logit_softcapping": 30.0},
    )
    assert spec.windows == (9, None, 9, 9, None, 9)
    assert spec.rope_local == RopeSpec(2e4)
    assert spec.logit_softcap == 30.0


def test_a_mistral_window_covers_all_layers(spec_of):
    assert spec_of(config={"attention.sliding_window": 77}).windows == (77,) * 6


def test_qwen3_has_its_own_head_size(spec_of):
    spec = spec_of("qwen3", {"attention.key_length": 128, "attention.value_length": 128})
    assert spec.head_dim == 128
    assert spec.qk_norm


def test_rope_scaling(spec_of):
    linear = spec_of(config={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert linear.rope.scaling == RopeScaling("linear", 4.0)
    assert spec_of(config={"rope.scale_linear": 2.0}).rope.scaling == RopeScaling("linear", 2.0)
    assert spec_of(config={"rope.scaling.type": "none"}).rope.scaling is None
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    spec = spec_of(config=yarn | {"rope.scaling.original_context_length": 512})
    assert spec.rope.scaling == RopeScaling("yarn", 4.0, 512)
    spec = spec_of(config=yarn | {"rope.scaling.yarn_attn_factor": 1.5})
    assert spec.rope.scaling == RopeScaling("yarn", 4.0, 2048, attention_factor=1.5)
    spec = spec_of(config=yarn | {"rope.scaling.yarn_log_multiplier": 1.0})
    assert spec.rope.scaling is not None
    assert spec.rope.scaling.attention_factor == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor", "low", "high", "original"),
    [
        (5e5, 128, 8.0, 1.0, 4.0, 8192),
        (5e5, 64, 32.0, 1.0, 4.0, 8192),
        (1e4, 64, 4.0, 2.0, 6.0, 4096),
    ],
)
def test_rope_freqs_become_the_llama3_scaling_they_came_from(
    spec_of, theta, head_dim, factor, low, high, original
):
    torch = pytest.importorskip("torch")
    from nonet.layers.rotary import inverse_frequencies

    wanted = RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    plain, _ = inverse_frequencies(RopeSpec(theta), head_dim, 4096)
    scaled, _ = inverse_frequencies(RopeSpec(theta, wanted), head_dim, 4096)
    divisors = (plain / scaled).numpy().astype(np.float32)
    config = {"rope.freq_base": theta, "rope.dimension_count": head_dim}
    spec = spec_of(config=config, tensors={"rope_freqs.weight": divisors})
    again, _ = inverse_frequencies(spec.rope, head_dim, 4096)
    torch.testing.assert_close(again, scaled, rtol=1e-4, atol=0)
    if low == 1.0:
        assert spec.rope.scaling == wanted
    shuffled = divisors[::-1].copy()
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        spec_of(config=config, tensors={"rope_freqs.weight": shuffled})


def test_ends_of_sequence_by_id_and_by_text(spec_of):
    texts = ["<unk>", "<s>", "</s>", "a", "<|im_end|>", "<end_of_turn>", "b"]
    kinds = [2, 3, 3, 1, 3, 1, 1]  # the fifth is a control token, the sixth is not
    top = {
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 6,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 300,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 64,
    }
    spec = spec_of(top=top)
    assert spec.eos_ids == (2, 6, 4)
    assert spec.bos_id == 1
    assert spec.pad_id is None
    assert (spec.generation.temperature, spec.generation.top_k) == (0.5, 64)


WRONG = [
    ({"config": {"block_count": 2**31}}, "from 1 to 1024"),
    ({"config": {"attention.head_count": 0}}, "from 1"),
    ({"config": {"attention.head_count": None}}, "does not give attention.head_count"),
    ({"config": {"attention.head_count_kv": 3}}, "evenly"),
    ({"config": {"embedding_length": "64"}}, "whole number"),
    ({"config": {"rope.freq_base": float("nan")}}, "finite"),
    ({"config": {"rope.scaling.type": "yarn"}}, "factor is missing"),
    ({"tensors": {"token_embd.weight": np.zeros(64, np.float32)}}, "no matrix"),
    ({"tensors": {"rope_freqs.weight": np.zeros(8, np.float32)}}, "divisors"),
    ({"tensors": {"rope_freqs.weight": np.ones(9, np.float32)}}, "shape"),
    ({"top": {"tokenizer.ggml.eos_token_id": 300}}, "below 300"),
    (
        {
            "architecture": "gemma3",
            "config": {
                "attention.sliding_window": 8,
                "attention.sliding_window_pattern": [True, False],
            },
        },
        "each of 6 layers",
    ),
]
UNSUPPORTED = [
    ({"architecture": "mamba"}, "'mamba'.*llama, qwen2"),
    ({"config": {"expert_count": 8}}, "experts"),
    ({"config": {"rope.dimension_count": 8, "attention.key_length": 16}}, "partial rotary"),
    ({"config": {"attention.key_length": 16, "attention.value_length": 8}}, "keys of 16"),
    ({"config": {"attention.head_count_kv": [1, 2, 1, 2, 1, 2]}}, "differs between layers"),
    ({"config": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}}, "'longrope'"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG, ids=lambda v: str(v)[:50])
def test_broken_metadata_is_refused(spec_of, given, sentence):
    with pytest.raises(ModelFileError, match=sentence):
        spec_of(**given)


@pytest.mark.parametrize(("given", "sentence"), UNSUPPORTED, ids=lambda v: str(v)[:50])
def test_what_nonet_cannot_run_is_named(spec_of, given, sentence):
    with pytest.raises(UnsupportedModelError, match=sentence):
        spec_of(**given)
