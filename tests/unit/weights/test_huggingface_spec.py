"""config.json to ModelSpec: agreement with transformers' own configuration classes, and refusal of the rest."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.model_spec import RopeScaling, RopeSpec
from nonet.weights.spec import read_spec

LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture
def spec_of(tmp_path: Path):
    def spec_of(config, generation=None):
        (tmp_path / "config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return read_spec(tmp_path)

    return spec_of


def test_importing_does_not_import_torch():
    code = "import nonet.weights.spec, nonet.core.gguf, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SMALL = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
CASES = [
    ("LlamaConfig", {}),
    ("LlamaConfig", SMALL | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    ("LlamaConfig", SMALL | {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
    (
        "LlamaConfig",
        SMALL | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    ),
    ("MistralConfig", {}),
    ("MistralConfig", SMALL | {"sliding_window": None, "eos_token_id": [5, 7]}),
    ("Qwen2Config", {}),
    ("Qwen2Config", SMALL | {"rope_parameters": {"rope_theta": 1e6, **YARN}}),
    (
        "Qwen2Config",
        SMALL | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},
    ),
    ("Qwen3Config", {}),
    ("Qwen3Config", SMALL | {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": True}),
    (
        "Qwen3Config",
        SMALL
        | {
            "use_sliding_window": True,
            "sliding_window": 32,
            "layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"],
        },
    ),
    ("Gemma3TextConfig", {}),
    ("Gemma3TextConfig", SMALL | {"sliding_window": 8, "query_pre_attn_scalar": 100}),
    ("Gemma3TextConfig", SMALL | {"sliding_window": 8, "sliding_window_pattern": 3}),
    (
        "Gemma3TextConfig",
        SMALL
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
    ),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "as-given"])
def test_agrees_with_transformers(tmp_path, spec_of, name, options, saved):
    """Both what save_pretrained writes and a config.json that holds only what was given."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name)(**json.loads(json.dumps(options)))
    if saved:
        config.save_pretrained(tmp_path)
        spec = read_spec(tmp_path)
    else:
        spec = spec_of({"model_type": config.model_type} | options)
    assert_same(spec, config)


def assert_same(spec, config):
    heads = config.num_attention_heads
    assert spec.vocab_size == config.vocab_size
    assert spec.hidden_size == config.hidden_size
    assert spec.intermediate_size == config.intermediate_size
    assert spec.num_layers == config.num_hidden_layers
    assert spec.num_heads == heads
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.head_dim == (getattr(config, "head_dim", None) or config.hidden_size // heads)
    assert spec.max_position == config.max_position_embeddings
    assert spec.norm_eps == config.rms_norm_eps
    assert spec.tie_embeddings == config.tie_word_embeddings
    assert (spec.bos_id, spec.pad_id) == (config.bos_token_id, config.pad_token_id)
    eos = config.eos_token_id
    assert spec.eos_ids == (tuple(eos) if isinstance(eos, list) else (eos,) if eos else ())
    assert spec.windows == windows_of(config)
    assert (spec.rope, spec.rope_local) == ropes_of(config)
    bias = getattr(config, "attention_bias", False)
    assert spec.qkv_bias == (config.model_type == "qwen2" or bias)
    assert spec.output_bias == bias
    assert spec.mlp_bias == getattr(config, "mlp_bias", False)
    if config.model_type == "gemma3_text":
        assert spec.family == "gemma3"
        assert spec.scale == pytest.approx(config.query_pre_attn_scalar**-0.5)
        assert spec.embedding_scale == math.sqrt(config.hidden_size)
        assert spec.norm_offset
        assert spec.sandwich_norm
        assert spec.activation == "gelu_tanh"
    else:
        assert spec.family == config.model_type
        assert spec.scale == spec.head_dim**-0.5


def windows_of(config):
    if config.model_type == "llama":
        return (None,) * config.num_hidden_layers
    if config.model_type == "mistral":
        return (config.sliding_window,) * config.num_hidden_layers
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    )


def ropes_of(config):
    def rope(parameters):
        kind = parameters["rope_type"]
        if kind == "default":
            return RopeSpec(parameters["rope_theta"])
        scaling = RopeScaling(
            kind,
            parameters["factor"],
            parameters.get("original_max_position_embeddings", 0),
            parameters.get("low_freq_factor", 1.0),
            parameters.get("high_freq_factor", 4.0),
        )
        return RopeSpec(parameters["rope_theta"], scaling)

    parameters = config.rope_parameters
    if config.model_type == "gemma3_text":
        return rope(parameters["full_attention"]), rope(parameters["sliding_attention"])
    return rope(parameters), None


def test_multimodal_gemma_is_read_as_its_language_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = transformers.Gemma3TextConfig(**SMALL, sliding_window=16)
    transformers.Gemma3Config(text_config=text).save_pretrained(tmp_path)
    assert_same(read_spec(tmp_path), text)


def test_gemma_in_the_spelling_of_transformers_4(spec_of):
    spec = spec_of(
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "torch_dtype": "bfloat16",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        }
    )
    assert spec.rope == RopeSpec(1e6, RopeScaling("linear", 8.0))
    assert spec.rope_local == RopeSpec(1e4)
    assert spec.windows[:7] == (1024,) * 5 + (None, 1024)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (8, 4, 256)
    assert spec.tie_embeddings
    assert spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn"} | YARN},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 2.0}},
        {"rope_parameters": YARN | {"rope_theta": 1e6, "mscale": 0.7, "mscale_all_dim": 1.2}},
        {"rope_parameters": YARN | {"rope_theta": 1e6, "attention_factor": 1.3, "beta_fast": 16}},
        {"rope_theta": 2e5, "rope_scaling": None},
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": None}, "rope_theta": 1e6}
        | {"original_max_position_embeddings": 128},
    ],
    ids=lambda value: str(value)[:70],
)
def test_frequencies_and_factor_equal_transformers(spec_of, rope):
    """Through the layers' own table, so that reader and formula are checked as one."""
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from nonet.layers.rotary import inverse_frequencies

    theirs = LlamaRotaryEmbedding(LlamaConfig(**LLAMA | json.loads(json.dumps(rope))))
    spec = spec_of(LLAMA | rope)
    frequencies, factor = inverse_frequencies(spec.rope, spec.head_dim, spec.max_position)
    torch.testing.assert_close(frequencies, theirs.inv_freq)
    assert factor == pytest.approx(theirs.attention_scaling)


def test_generation_config_adds_sampling_and_ends(spec_of):
    generation = {"eos_token_id": [9, 2], "temperature": 0.7, "top_k": 20, "min_p": None}
    spec = spec_of(LLAMA | {"eos_token_id": [2, 3], "bos_token_id": 0}, generation)
    assert spec.eos_ids == (9, 2, 3)
    assert spec.bos_id == 0
    assert (spec.generation.temperature, spec.generation.top_k) == (0.7, 20)
    assert spec.generation.top_p is None
    assert spec.generation.min_p is None


def test_remote_code_is_not_looked_at(spec_of):
    plain = spec_of(LLAMA)
    assert spec_of(LLAMA | {"auto_map": {"AutoModel": "evil.py:Evil"}}) == plain


def test_a_padding_id_outside_the_vocabulary_is_dropped(spec_of):
    assert spec_of(LLAMA | {"pad_token_id": 256}).pad_id is None
    assert spec_of(LLAMA | {"pad_token_id": -1}).pad_id is None
    assert spec_of(LLAMA | {"pad_token_id": 255}).pad_id == 255


UNSUPPORTED = {
    "family": ({"model_type": "mamba"}, "'mamba'.*llama, mistral"),
    "rope type": (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "rope longrope": (LLAMA | {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
    "rope type is a list": (LLAMA | {"rope_parameters": {"rope_type": ["yarn"]}}, r"\['yarn'\]"),
    "activation": (LLAMA | {"hidden_act": "relu"}, "'relu'"),
    "dtype": (LLAMA | {"dtype": "float64"}, "'float64'"),
    "quantised": (
        LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}},
        "'bitsandbytes'.*awq, compressed-tensors, fbgemm_fp8, fp8, gptq can",
    ),
    "classifier": (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "generate text"),
    "partial": (LLAMA | {"partial_rotary_factor": 0.5}, "partial rotary"),
    "partial in rope": (
        LLAMA | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        "partial rotary",
    ),
    "nested rope": (
        LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "for Gemma only",
    ),
    "layer type": (
        LLAMA | {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear"] * 4},
        "'linear'",
    ),
    "bidirectional": (
        LLAMA | {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        "bidirectional",
    ),
}
WRONG = {
    "not json": ("{", "not JSON"),
    "not an object": ("[]", "JSON object"),
    "deep": ("[" * 100_000, "not JSON"),
    "digits": ('{"vocab_size": ' + "9" * 5000 + "}", "not JSON"),
    "no model_type": ({}, "does not give model_type"),
    "string for a number": (LLAMA | {"hidden_size": "64"}, "whole number"),
    "boolean for a number": (LLAMA | {"num_hidden_layers": True}, "whole number"),
    "zero heads": (LLAMA | {"num_attention_heads": 0}, "from 1"),
    "negative": (LLAMA | {"num_hidden_layers": -1}, "from 1"),
    "many layers": (LLAMA | {"num_hidden_layers": 10**9}, "from 1 to 1024"),
    "huge vocabulary": (LLAMA | {"vocab_size": 2**31 - 1}, "vocab_size is"),
    "huge head": (LLAMA | {"head_dim": 10**6}, "head_dim is"),
    "odd head": (LLAMA | {"head_dim": 15}, "even"),
    "uneven heads": (LLAMA | {"num_key_value_heads": 3}, "evenly"),
    "nan": (json.dumps(LLAMA | {"rms_norm_eps": float("nan")}), "finite"),
    "infinite theta": (json.dumps(LLAMA | {"rope_theta": 1e999}), "finite"),
    "theta of 1": (LLAMA | {"rope_theta": 1.0}, "rope_theta"),
    "eos": (LLAMA | {"eos_token_id": 256}, "below 256"),
    "eos list": (LLAMA | {"eos_token_id": [1, "2"]}, "below 256"),
    "rope is a list": (LLAMA | {"rope_scaling": [1]}, "table"),
    "no factor": (LLAMA | {"rope_scaling": {"type": "linear"}}, "does not give factor"),
    "factor 0": (LLAMA | {"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    "flat rope for gemma": (
        LLAMA | {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}},
        "by layer type",
    ),
    "layer types": (
        LLAMA
        | {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"]},
        "1 entries for 4 layers",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_nonet_cannot_run_is_named(spec_of, case):
    config, sentence = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=sentence):
        spec_of(config)


@pytest.mark.parametrize("case", WRONG)
def test_broken_configurations_are_refused(spec_of, case):
    config, sentence = WRONG[case]
    with pytest.raises(ModelFileError, match=sentence):
        spec_of(config)


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"config\.json"):
        read_spec(tmp_path)


def test_every_value_replaced_by_nonsense_is_refused_or_harmless(spec_of):
    """Every key by every kind of value: never anything but the two errors, or a spec."""
    full = LLAMA | {
        "rope_scaling": LLAMA3,
        "rope_theta": 1e4,
        "sliding_window": 16,
        "layer_types": ["full_attention"] * 4,
        "use_sliding_window": True,
        "eos_token_id": [1],
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "text_config": {},
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": {},
    }
    values = [None, True, -1, 0, 1, 2**70, 1.5, -0.0, "", "x", [], [None], {}, {"a": 1}, [[]]]
    outcomes = {"spec": 0, "refused": 0}
    for family in ("llama", "qwen3", "gemma3_text"):
        for key in full:
            for value in values:
                try:
                    spec = spec_of(full | {"model_type": family} | {key: value})
                except (ModelFileError, UnsupportedModelError):
                    outcomes["refused"] += 1
                else:
                    assert dataclasses.is_dataclass(spec)
                    outcomes["spec"] += 1
    assert min(outcomes.values()) > 100
