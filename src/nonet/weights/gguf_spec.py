"""GGUF metadata to ModelSpec.

The container says less than a Hugging Face configuration; what it leaves to the reader (Gemma's pattern of windows,
its local RoPE base, its attention scale, which tokens end a turn) is decided here as the format's own runtime does.
"""

from __future__ import annotations

import math
import struct
from typing import Literal

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.core.gguf import GGUFFile
from nonet.core.model_spec import Family, GenerationDefaults, ModelSpec, RopeScaling, RopeSpec

__all__ = ["gguf_spec"]

_FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
}
_MAX_LAYERS = 1 << 10
_GEMMA_PATTERN = 6
_GEMMA_LOCAL_THETA = 10000.0
_GEMMA_27B_LAYERS = 62

# Texts of control tokens that end a turn or a document; files often name only one of a model's several.
_END_TEXTS = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>")
)
_CONTROL = 3  # tokenizer.ggml.token_type


def gguf_spec(file: GGUFFile, where: str) -> ModelSpec:
    """The spec of an open GGUF file; `where` begins every complaint."""
    top = Fields(file.metadata, where)
    architecture = top.text("general.architecture")
    family = _FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedModelError(
            f"{where}: nonet has no code for GGUF architecture {architecture!r}; it runs {', '.join(_FAMILIES)}"
        )
    start = architecture + "."
    config = Fields(
        {k.removeprefix(start): v for k, v in file.metadata.items() if k.startswith(start)},
        f"{where}: {architecture}",
    )
    if config.has("expert_count") and config.integer("expert_count", 0):
        raise UnsupportedModelError(f"{where}: mixtures of experts are not supported")
    vocab_size = _vocab_size(file, where)
    hidden_size = config.integer("embedding_length")
    num_layers = config.integer("block_count", high=_MAX_LAYERS)
    num_heads = _same_in_all_layers(config, "attention.head_count", None)
    head_dim = _head_dim(config, hidden_size, num_heads)
    is_gemma = family == "gemma3"
    return ModelSpec(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_same_in_all_layers(config, "feed_forward_length", None),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_same_in_all_layers(config, "attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position=config.integer("context_length"),
        norm_eps=config.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=_rope(file, config, head_dim),
        rope_local=_local_rope(config) if is_gemma else None,
        layer_windows=_windows(config, num_layers, is_gemma),
        tie_embeddings="output.weight" not in file.tensors,
        activation="gelu_tanh" if is_gemma else "silu",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm=family in ("qwen3", "gemma3"),
        sandwich_norm=is_gemma,
        norm_offset=False,  # Gemma's norm weights are stored with the 1 added
        embedding_scale=math.sqrt(hidden_size) if is_gemma else 1.0,
        attention_scale=_attention_scale(config, is_gemma, num_layers, hidden_size / num_heads),
        attention_softcap=config.optional_number("attn_logit_softcapping") or None,
        logit_softcap=config.optional_number("final_logit_softcapping") or None,
        bos_id=_first(top.token_ids("tokenizer.ggml.bos_token_id", vocab_size)),
        eos_ids=_eos_ids(top, vocab_size),
        pad_id=_first(
            [i for i in top.token_ids("tokenizer.ggml.padding_token_id") if i < vocab_size]
        ),
        dtype=_dtype(file),
        generation=_generation(top),
    )


def _same_in_all_layers(config: Fields, key: str, default: int | None) -> int:
    """A count that may be given per layer, of which nonet runs only one value."""
    if default is not None and not config.has(key):
        return default
    values = {str(value): value for value in config.items(key)}
    if len(values) > 1:
        raise UnsupportedModelError(f"{config.where}: {key} differs between layers")
    return Fields({key: next(iter(values.values()), None)}, config.where).integer(key)


def _head_dim(config: Fields, hidden_size: int, num_heads: int) -> int:
    rotated = config.optional_integer("rope.dimension_count")
    keys = config.optional_integer("attention.key_length") or rotated or hidden_size // num_heads
    values = config.optional_integer("attention.value_length") or keys
    if (rotated or keys) != keys:
        raise UnsupportedModelError(f"{config.where}: partial rotary embedding is not supported")
    if values != keys:
        raise UnsupportedModelError(
            f"{config.where}: keys of {keys} and values of {values} elements are not supported"
        )
    return keys


def _vocab_size(file: GGUFFile, where: str) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ModelFileError(f"{where}: there is no matrix 'token_embd.weight'")
    return table.shape[0]


def _attention_scale(
    config: Fields, is_gemma: bool, num_layers: int, hidden_per_head: float
) -> float:
    """0 stands for 1 / sqrt(head_dim). Gemma 3 27B, known by its layers, scales by its hidden size instead."""
    given = config.optional_number("attention.scale")
    if given:
        return given
    return hidden_per_head**-0.5 if is_gemma and num_layers == _GEMMA_27B_LAYERS else 0.0


def _windows(config: Fields, num_layers: int, is_gemma: bool) -> tuple[int | None, ...]:
    window = config.optional_integer("attention.sliding_window", low=0)
    if not window:
        return (None,) * num_layers
    if not is_gemma:
        return (window,) * num_layers
    key = "attention.sliding_window_pattern"
    given = config.values.get(key)
    if isinstance(given, list):
        if len(given) != num_layers or not all(type(item) is bool for item in given):
            raise ModelFileError(
                f"{config.where}: {key} must hold true or false for each of {num_layers} layers"
            )
        return tuple(window if slides else None for slides in given)
    every = config.optional_integer(key) or _GEMMA_PATTERN
    return tuple(window if (index + 1) % every else None for index in range(num_layers))


def _rope(file: GGUFFile, config: Fields, head_dim: int) -> RopeSpec:
    theta = config.optional_number("rope.freq_base", 1.0001) or 10000.0
    if "rope_freqs.weight" in file.tensors:
        return RopeSpec(theta, _scaling_of_divisors(file, theta, head_dim))
    return RopeSpec(theta, _scaling(config))


def _local_rope(config: Fields) -> RopeSpec:
    return RopeSpec(config.optional_number("rope.freq_base_swa", 1.0001) or _GEMMA_LOCAL_THETA)


def _scaling(config: Fields) -> RopeScaling | None:
    factor = config.optional_number("rope.scaling.factor") or config.optional_number(
        "rope.scale_linear"
    )
    kind = config.text("rope.scaling.type") if config.has("rope.scaling.type") else "linear"
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"{config.where}: RoPE scaling {kind!r} is not known; none, linear and yarn are"
        )
    if not factor:
        raise ModelFileError(f"{config.where}: rope.scaling.factor is missing")
    if kind == "linear":
        return RopeScaling("linear", factor)
    return RopeScaling(
        "yarn",
        factor,
        config.optional_integer("rope.scaling.original_context_length")
        or config.integer("context_length"),
        beta_fast=config.optional_number("rope.scaling.yarn_beta_fast") or 32.0,
        beta_slow=config.optional_number("rope.scaling.yarn_beta_slow") or 1.0,
        attention_factor=_yarn_attention_factor(config, factor),
    )


def _yarn_attention_factor(config: Fields, factor: float) -> float | None:
    """What cosines and sines are multiplied with, where it is not the paper's 0.1 ln(factor) + 1."""
    total = config.optional_number("rope.scaling.yarn_attn_factor")
    if total:
        return total
    extra = config.optional_number("rope.scaling.attn_factor")
    multiplier = config.optional_number("rope.scaling.yarn_log_multiplier")
    if not extra and not multiplier:
        return None
    growth = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (extra or 1.0) * (growth + 1.0) / (growth * multiplier + 1.0 if multiplier else 1.0)


def _scaling_of_divisors(file: GGUFFile, theta: float, head_dim: int) -> RopeScaling | None:
    """The llama3 scaling behind `rope_freqs.weight`, which holds what each frequency is divided by.

    Between the border wavelengths 1 / divisor is a straight line in the frequency. Any low_freq_factor describes that
    line if the other numbers fit it; 1, which all published models have, is assumed.
    """
    divisors = _floats(file, "rope_freqs.weight", head_dim // 2)
    frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    factor = max(divisors)
    if factor == 1.0:
        return None
    # blend b: 1 / divisor = (1 - b) / factor + b
    blends = [(1 / divisor - 1 / factor) / (1 - 1 / factor) for divisor in divisors]
    line = [(f, b) for f, b in zip(frequencies, blends, strict=True) if 0.0 < b < 1.0]
    scaling = RopeScaling("llama3", factor, 8192)
    if len(line) >= 2:
        (f0, b0), (f1, b1) = line[0], line[-1]
        slope = (b0 - b1) / (f0 - f1)
        offset = b0 - slope * f0  # b = original / wavelength / (high - low) - low / (high - low)
        if slope > 0 > offset:
            width = -1 / offset
            original = round(slope * width * 2 * math.pi)
            scaling = RopeScaling("llama3", factor, original, high_freq_factor=round(width, 3) + 1)
    if not all(
        math.isclose(divisor, _divisor(scaling, frequency), rel_tol=2e-3)
        for divisor, frequency in zip(divisors, frequencies, strict=True)
    ):
        raise UnsupportedModelError(
            "the tensor 'rope_freqs.weight' does not hold a llama3 RoPE scaling; no other is read from it"
        )
    return scaling


def _divisor(scaling: RopeScaling, frequency: float) -> float:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    rotations = scaling.original_max_position * frequency / (2 * math.pi)
    blend = min(max((rotations - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - blend) / scaling.factor + blend)


def _floats(file: GGUFFile, name: str, count: int) -> tuple[float, ...]:
    tensor = file.tensors[name]
    if tensor.kind != "F32" or tensor.shape != (count,):
        raise ModelFileError(
            f"tensor {name!r} is {tensor.kind} of shape {tensor.shape}; F32 of shape ({count},) is needed"
        )
    values = struct.unpack(f"<{count}f", file.raw(name))
    if not all(1.0 <= value < 1e6 for value in values):
        raise ModelFileError(f"tensor {name!r} holds divisors outside 1 to 1000000")
    return values


def _eos_ids(top: Fields, vocab_size: int) -> tuple[int, ...]:
    ids: list[int] = []
    for name in ("eos", "eot", "eom"):
        ids += top.token_ids(f"tokenizer.ggml.{name}_token_id", vocab_size)
    kinds = top.items("tokenizer.ggml.token_type")
    texts = top.items("tokenizer.ggml.tokens")
    for token_id, text in enumerate(texts[: min(len(kinds), vocab_size)]):
        if text in _END_TEXTS and kinds[token_id] == _CONTROL:
            ids.append(token_id)
    return tuple(dict.fromkeys(ids))


def _dtype(file: GGUFFile) -> Literal["float32", "float16", "bfloat16"]:
    """The float type of the matrices; bfloat16 holds block formats well enough to compute in."""
    matrix = file.tensors.get("blk.0.attn_q.weight")
    if matrix is not None and matrix.kind == "F32":
        return "float32"
    return "float16" if matrix is not None and matrix.kind == "F16" else "bfloat16"


def _generation(top: Fields) -> GenerationDefaults:
    return GenerationDefaults(
        temperature=top.optional_number("general.sampling.temp", 0.0, 100.0),
        top_p=top.optional_number("general.sampling.top_p", 0.0, 1.0),
        top_k=top.optional_integer("general.sampling.top_k", -1, 1_000_000),
        min_p=top.optional_number("general.sampling.min_p", 0.0, 1.0),
        repetition_penalty=top.optional_number("general.sampling.penalty_repeat", 0.01, 100.0),
    )


def _first(ids: list[int]) -> int | None:
    return ids[0] if ids else None
