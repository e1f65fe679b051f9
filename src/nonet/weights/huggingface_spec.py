"""config.json and generation_config.json to ModelSpec, in the spellings of transformers 4 and 5.

A key that a file leaves out has the default of transformers' own configuration class, because that is what the file's
writer relied on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, cast

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.core.limits import LIMITS
from nonet.core.model_spec import Family, GenerationDefaults, ModelSpec, RopeScaling, RopeSpec
from nonet.quant.checkpoints.declared import check_method, declared_bits, declares_float8

__all__ = ["huggingface_spec", "quantization_config"]

_FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}

_SHARED_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
_QWEN_DEFAULTS: dict[str, object] = _SHARED_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: dict[Family, dict[str, object]] = {
    "llama": _SHARED_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": _SHARED_DEFAULTS
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": _QWEN_DEFAULTS | {"head_dim": 128},
    "gemma3": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
}

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_MAX_JSON_BYTES = 16 << 20
_MAX_LAYERS = 1 << 10


def huggingface_spec(directory: Path) -> ModelSpec:
    """The spec of a directory with a config.json; `generation_config.json` adds to it where there is one."""
    path = directory / "config.json"
    top = Fields(_read_json(path), str(path))
    family, config = _family_and_config(top)
    _refuse_what_is_not_read(top, config)
    quantized = _quantization(top)
    generation_path = directory / "generation_config.json"
    generation = Fields(
        _read_json(generation_path) if generation_path.is_file() else {}, str(generation_path)
    )
    vocab_size = config.integer("vocab_size")
    eos_ids = generation.token_ids("eos_token_id", vocab_size)
    eos_ids += config.token_ids("eos_token_id", vocab_size)
    num_heads = config.integer("num_attention_heads")
    hidden_size = config.integer("hidden_size")
    has_bias = config.boolean("attention_bias") and family != "mistral"
    is_gemma = family == "gemma3"
    return ModelSpec(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers", high=_MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=config.optional_integer("num_key_value_heads") or num_heads,
        head_dim=config.optional_integer("head_dim") or max(hidden_size // num_heads, 1),
        max_position=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps", 0.0, 1.0),
        rope=_rope(config, "full_attention" if is_gemma else None),
        rope_local=_rope(config, "sliding_attention") if is_gemma else None,
        layer_windows=_windows(config, family),
        tie_embeddings=config.boolean("tie_word_embeddings"),
        activation=_activation(config, "hidden_activation" if is_gemma else "hidden_act"),
        qkv_bias=family == "qwen2" or has_bias,
        output_bias=family != "qwen2" and has_bias,
        mlp_bias=family == "llama" and config.boolean("mlp_bias"),
        qk_norm=family in ("qwen3", "gemma3"),
        sandwich_norm=is_gemma,
        norm_offset=is_gemma,
        embedding_scale=math.sqrt(hidden_size) if is_gemma else 1.0,
        attention_scale=config.number("query_pre_attn_scalar", 1e-6) ** -0.5 if is_gemma else 0.0,
        attention_softcap=config.optional_number("attn_logit_softcapping") or None,
        logit_softcap=config.optional_number("final_logit_softcapping") or None,
        bos_id=_first(config.token_ids("bos_token_id", vocab_size)),
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        pad_id=_first([i for i in config.token_ids("pad_token_id") if i < vocab_size]),
        dtype=_dtype(top, config),
        code_bits=None if quantized is None else declared_bits(quantized),
        stores_float8=quantized is not None and declares_float8(quantized),
        generation=_generation(generation),
        initializer_range=config.optional_number("initializer_range") or 0.02,
    )


def quantization_config(directory: Path) -> Fields | None:
    """How the weights of the directory are stored, where config.json says that they are quantised."""
    path = directory / "config.json"
    return _quantization(Fields(_read_json(path), str(path))) if path.is_file() else None


def _quantization(top: Fields) -> Fields | None:
    for table in (top, top.table("text_config")):
        if table.has("quantization_config"):
            config = table.table("quantization_config")
            check_method(config)
            return config
    return None


def _read_json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelFileError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8, too many digits
        raise ModelFileError(f"{path}: not JSON: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: a JSON object is needed")
    return content


def _family_and_config(top: Fields) -> tuple[Family, Fields]:
    model_type = top.text("model_type")
    family = _FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{top.where}: nonet has no code for model_type {model_type!r}; it runs {', '.join(_FAMILIES)}"
        )
    given = dict(top.values)
    if top.has("text_config"):  # a multimodal checkpoint: its language model alone is run
        given |= top.table("text_config").values
        given.setdefault("tie_word_embeddings", top.values.get("tie_word_embeddings"))
    return family, Fields(_with_defaults(_DEFAULTS[family], given), top.where)


def _with_defaults(defaults: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """What was given, null included where null says something, over the defaults."""
    meaningful_null = (
        "sliding_window",
        "num_key_value_heads",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "head_dim",
    )
    kept = {k: v for k, v in given.items() if v is not None or k in meaningful_null}
    return defaults | kept


def _refuse_what_is_not_read(top: Fields, config: Fields) -> None:
    where = top.where
    for name in top.items("architectures")[:1]:
        if not str(name).endswith(("ForCausalLM", "ForConditionalGeneration")):
            raise UnsupportedModelError(f"{where}: {name} does not generate text")
    if config.boolean("use_bidirectional_attention"):
        raise UnsupportedModelError(f"{where}: bidirectional attention is not supported")
    if config.has("partial_rotary_factor") and config.number("partial_rotary_factor") != 1.0:
        raise UnsupportedModelError(f"{where}: partial rotary embedding is not supported")


def _windows(config: Fields, family: Family) -> tuple[int | None, ...]:
    num_layers = config.integer("num_hidden_layers", high=_MAX_LAYERS)
    if family == "llama":
        return (None,) * num_layers
    window = config.optional_integer("sliding_window")
    if family == "mistral":
        return (window,) * num_layers
    if family in ("qwen2", "qwen3") and not config.boolean("use_sliding_window"):
        return (None,) * num_layers
    kinds = config.items("layer_types")
    if not kinds and family == "gemma3":
        every = config.integer("sliding_window_pattern")
        kinds = _pattern((index + 1) % every != 0 for index in range(num_layers))
    elif not kinds:
        first = config.integer("max_window_layers", 0)
        kinds = _pattern(index >= first for index in range(num_layers))
    if len(kinds) != num_layers:
        raise ModelFileError(
            f"{config.where}: layer_types has {len(kinds)} entries for {num_layers} layers"
        )
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(f"{config.where}: no code for layers of type {kind!r}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _pattern(sliding: object) -> list[object]:
    return ["sliding_attention" if is_sliding else "full_attention" for is_sliding in sliding]  # type: ignore[attr-defined]


def _rope(config: Fields, layer_type: str | None) -> RopeSpec:
    """The rotary embedding of all layers, or, for Gemma, of one type of layer.

    transformers 4 writes rope_theta (and rope_local_base_freq) with rope_scaling, 5 writes rope_parameters, by layer
    type for Gemma.
    """
    parameters = config.table("rope_parameters")
    if layer_type is not None and parameters.values:
        parameters = parameters.table(layer_type)
        if not parameters.values and not config.table("rope_parameters").has("full_attention"):
            raise ModelFileError(f"{config.where}: rope_parameters must be given by layer type")
    values = dict(parameters.values)
    if layer_type != "sliding_attention":
        values |= config.table("rope_scaling").values  # transformers lets the older spelling win
    local = layer_type == "sliding_attention"
    values.setdefault(
        "rope_theta", config.values["rope_local_base_freq" if local else "rope_theta"]
    )
    rope = Fields(values, f"{config.where}: RoPE")
    if any(isinstance(value, dict) for value in values.values()):
        raise UnsupportedModelError(f"{config.where}: RoPE by layer type is read for Gemma only")
    if rope.has("partial_rotary_factor") and rope.number("partial_rotary_factor") != 1.0:
        raise UnsupportedModelError(f"{config.where}: partial rotary embedding is not supported")
    return RopeSpec(rope.number("rope_theta", 1.0001), _scaling(rope, config))


def _scaling(rope: Fields, config: Fields) -> RopeScaling | None:
    kind = rope.values.get("rope_type") or rope.values.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModelError(
            f"{rope.where} type {kind!r} is not known; default, linear, llama3 and yarn are"
        )
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor", 1e-3))
    max_position = config.integer("max_position_embeddings")
    original = (
        config.optional_integer("original_max_position_embeddings")
        or rope.optional_integer("original_max_position_embeddings")
        or max_position
    )
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", 1e-3), rope.number("high_freq_factor", 1e-3)
        if high <= low:
            raise ModelFileError(f"{rope.where}: high_freq_factor must be above low_freq_factor")
        return RopeScaling(
            "llama3",
            rope.number("factor", 1e-3),
            original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    if not rope.boolean("truncate", True):
        raise UnsupportedModelError(f"{rope.where}: yarn without truncation is not supported")
    factor = rope.optional_number("factor", 1e-3) or max_position / original
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: Fields, factor: float) -> float | None:
    """What yarn multiplies cosines and sines with, where it is not the paper's 0.1 ln(factor) + 1."""
    given = rope.optional_number("attention_factor")
    if given is not None:
        return given
    mscale, all_dim = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if not mscale or not all_dim:
        return None
    growth = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (growth * mscale + 1.0) / (growth * all_dim + 1.0)


def _activation(config: Fields, key: str) -> Literal["silu", "gelu_tanh"]:
    name = config.text(key)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.where}: activation {name!r} is not known; {', '.join(_ACTIVATIONS)} are"
        )
    return _ACTIVATIONS[name]


def _dtype(top: Fields, config: Fields) -> Literal["float32", "float16", "bfloat16"]:
    spelled = [f.values.get(key) for f in (config, top) for key in ("dtype", "torch_dtype")]
    name = str(next(filter(None, spelled), "float32")).removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16"):
        raise UnsupportedModelError(
            f"{top.where}: dtype {name!r} is not known; float32, float16 and bfloat16 are"
        )
    return cast(Literal["float32", "float16", "bfloat16"], name)


def _generation(generation: Fields) -> GenerationDefaults:
    def within(name: str) -> float | None:
        limit = LIMITS[name]
        low, high = limit.minimum, limit.maximum
        return generation.optional_number(
            name, -1e30 if low is None else low, 1e30 if high is None else high
        )

    top_k = within("top_k")
    return GenerationDefaults(
        temperature=within("temperature"),
        top_p=within("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=within("min_p"),
        repetition_penalty=within("repetition_penalty"),
    )


def _first(ids: list[int]) -> int | None:
    return ids[0] if ids else None
