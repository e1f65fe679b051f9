"""What a model is, as plain typed values: read from a checkpoint in `nonet.weights.spec`, used everywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["GenerationDefaults", "ModelSpec", "RopeScaling", "RopeSpec"]

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    linear: positions divided by `factor`. llama3: low frequencies divided, with a smooth border between
    `low_freq_factor` and `high_freq_factor`. yarn (arXiv 2309.00071): interpolated by wavelength between `beta_slow`
    and `beta_fast`, cosines and sines multiplied by `attention_factor` (None: 0.1 ln(factor) + 1).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over all of the head dimension, in the half-split layout of Hugging Face."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling that the checkpoint's generation_config recommends; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape and switches of a decoder-only transformer. Sizes are counts of elements.

    `layer_windows[i]` is the sliding window of layer i in tokens, the query itself included, or None for full
    attention. Layers with a window use `rope_local` where it is given, all others use `rope`.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    rope: RopeSpec
    rope_local: RopeSpec | None = None
    layer_windows: tuple[int | None, ...] = ()
    tie_embeddings: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norm: bool = False  # norms after attention and after the MLP too (Gemma)
    norm_offset: bool = (
        False  # checkpoint stores RMSNorm weights minus one (Gemma in Hugging Face format)
    )
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"  # as stored
    code_bits: int | None = None  # of a checkpoint whose weights are integer codes
    stores_float8: bool = False  # a checkpoint whose weights are 8-bit floats that kernels can keep
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    # Deviation of made-up weights; no part of what the model is.
    initializer_range: float = field(default=0.02, compare=False)

    @property
    def scale(self) -> float:
        """What q · k is multiplied with."""
        return float(self.attention_scale or self.head_dim**-0.5)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """One entry per layer, also where `layer_windows` was left empty."""
        return self.layer_windows or (None,) * self.num_layers

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by their Hugging Face names: (outputs, inputs)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @property
    def num_parameters(self) -> int:
        """Weights in matrices and embeddings; norms and biases are left out (under 0.1 %)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp) + embeddings

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element
