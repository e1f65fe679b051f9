"""Random weights of any shape, so that speed can be measured without a checkpoint.

Values depend on the seed and the tensor's name alone. One run of noise per tensor is repeated to fill it, because
drawing billions of numbers would take minutes; its prime length keeps rows from repeating.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["DummySource"]

_CPU = torch.device("cpu")


class DummySource:
    """A `WeightSource` of made-up tensors: matrices and biases as wide as the spec says, norms near one.

    They are made on `device`: a GPU fills its memory many times faster than a host can send to it.

    >>> source = DummySource(spec, seed=0)  # doctest: +SKIP
    >>> source.load("model.norm.weight").equal(source.load("model.norm.weight"))  # doctest: +SKIP
    True
    """

    format = "dummy"

    def __init__(self, spec: ModelSpec, seed: int = 0, device: torch.device = _CPU) -> None:
        self._seed = seed
        self._device = device
        self._dtype = _DTYPES[spec.dtype]
        self._deviation = spec.initializer_range
        self._norm_mean = 0.0 if spec.norm_offset else 1.0
        self._shapes = _shapes(spec)

    def names(self) -> Sequence[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def load(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        flat = values.view(-1)
        noise = torch.randn(min(_NOISE_LENGTH, flat.numel()), generator=generator) * self._deviation
        if name.endswith("norm.weight"):
            noise += self._norm_mean
        noise = noise.to(self._device, self._dtype)
        whole = flat.numel() // len(noise) * len(noise)
        flat[:whole].view(-1, len(noise)).copy_(noise)
        flat[whole:] = noise[: flat.numel() - whole]
        return values

    def load_codes(self, name: str) -> GroupwiseTensor | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_NOISE_LENGTH = 1_048_573  # prime


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this spec asks for."""
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for index in range(spec.num_layers):
        prefix = f"model.layers.{index}."
        shapes |= {prefix + name: shape for name, shape in _layer_shapes(spec).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def _layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden = spec.hidden_size
    norms = ["input_layernorm", "post_attention_layernorm"]
    if spec.sandwich_norm:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (hidden,) for name in norms}
    if spec.qk_norm:
        shapes |= {f"self_attn.{part}_norm.weight": (spec.head_dim,) for part in "qk"}
    for name, (outputs, inputs) in spec.linears.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if _has_bias(spec, name):
            shapes[f"{name}.bias"] = (outputs,)
    return shapes


def _has_bias(spec: ModelSpec, name: str) -> bool:
    if name.startswith("mlp."):
        return spec.mlp_bias
    return spec.output_bias if name == "self_attn.o_proj" else spec.qkv_bias
