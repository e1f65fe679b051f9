"""BERT sentence encoders, such as all-MiniLM-L6-v2, in numpy.

Idea: a BERT encoder reads a text in both directions; the mean of its last hidden states, at length 1, stands for the
text. Short texts are a few hundred million operations, which one core does in milliseconds, so the process that needs
the vector computes it and no engine is asked.
Reference: arXiv 1810.04805 (BERT), arXiv 1908.10084 (mean pooling).
Cost: 91 MB of memory and about 21 MFLOP a token for MiniLM; texts of one batch are padded to the longest.
Good for: semantic caches, routing, search over short texts.
Conflicts: none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.embed.base import Vectors, normalised

__all__ = ["BertEmbedder"]

MAX_BATCH = 32
MASKED = np.float32(-1e9)
ACTIVATIONS = ("gelu",)


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Vectors  # [K, N]
    bias: Vectors

    def __call__(self, x: Vectors) -> Vectors:
        return x @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Vectors
    bias: Vectors
    eps: float

    def __call__(self, x: Vectors) -> Vectors:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        scaled: Vectors = centred / np.sqrt(variance + np.float32(self.eps))
        return scaled * self.weight + self.bias


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    norm: _Norm


class BertEmbedder:
    """A model directory with config.json, tokenizer.json and model.safetensors.

    Example::

        embedder = BertEmbedder.open(resolve_model("minilm"))
        vectors = embedder.embed([embedder.encode(text) for text in texts])
    """

    def __init__(
        self, config: _Config, tensors: Mapping[str, Vectors], tokenizer: tokenizers.Tokenizer
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        read = _Tensors(tensors, config)
        self._words = read["embeddings.word_embeddings.weight"]
        positions = read["embeddings.position_embeddings.weight"]
        self._positions = positions + read["embeddings.token_type_embeddings.weight"][0]
        self._norm = read.norm("embeddings.LayerNorm")
        self._layers = [read.layer(index) for index in range(config.num_hidden_layers)]
        self._shape = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)

    @classmethod
    def open(cls, path: Path) -> BertEmbedder:
        """ModelFileError for files that are missing or corrupt, UnsupportedModelError for another kind of model."""
        config = _Config.read(path)
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            tensors = load_file(path / "model.safetensors")
        except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
            raise ModelFileError(f"{path} cannot be read as a text encoder: {error}") from None
        except Exception as error:  # what `tokenizers` raises has no type of its own
            raise ModelFileError(f"{path}/tokenizer.json cannot be used: {error}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(config, tensors, tokenizer)

    @property
    def dimensions(self) -> int:
        return self._config.hidden_size

    @property
    def max_tokens(self) -> int:
        return self._config.max_tokens

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        vectors = np.zeros((len(token_ids), self.dimensions), np.float32)
        by_length = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
        for start in range(0, len(by_length), MAX_BATCH):
            batch = by_length[start : start + MAX_BATCH]
            vectors[batch] = self._batch([token_ids[i] for i in batch])
        return normalised(vectors)

    def _batch(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Means of the last hidden states [B, D]."""
        lengths = np.array([len(ids) for ids in texts])
        longest = int(lengths.max())
        ids = np.zeros((len(texts), longest), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        is_token = np.arange(longest) < lengths[:, None]  # [B, T]
        hidden = self._hidden(ids, is_token)
        means: Vectors = (hidden * is_token[:, :, None]).sum(1) / lengths[:, None]
        return means.astype(np.float32)

    def _hidden(self, ids: np.ndarray[Any, Any], is_token: np.ndarray[Any, Any]) -> Vectors:
        x = self._norm(self._words[ids] + self._positions[: ids.shape[1]])
        bias = np.where(is_token, np.float32(0), MASKED)[:, None, None, :]
        for layer in self._layers:
            x = layer.attention_norm(x + layer.out(self._attention(layer.qkv(x), bias)))
            x = layer.norm(x + layer.down(_gelu(layer.up(x))))
        return x

    def _attention(self, qkv: Vectors, bias: Vectors) -> Vectors:
        """qkv [B, T, 3 M] to [B, T, M]; every token sees every token of its text."""
        batch, length, _ = qkv.shape
        heads, width = self._shape
        q, k, v = qkv.reshape(batch, length, 3, heads, width).transpose(2, 0, 3, 1, 4)
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32(1 / math.sqrt(width)) + bias
        scores -= scores.max(-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(-1, keepdims=True)
        context: Vectors = (weights @ v).transpose(0, 2, 1, 3)
        return context.reshape(batch, length, heads * width)


@dataclass(frozen=True, slots=True)
class _Config:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_tokens: int
    layer_norm_eps: float

    @classmethod
    def read(cls, path: Path) -> _Config:
        given = _json(path / "config.json")
        kind, activation = given.get("model_type"), given.get("hidden_act")
        if kind != "bert" or activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"{path} holds a {kind!r} model with {activation!r}; text encoders are bert with gelu"
            )
        if given.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedModelError(f"{path} has relative positions; absolute ones are known")
        try:
            config = cls(
                hidden_size=int(given["hidden_size"]),
                num_hidden_layers=int(given["num_hidden_layers"]),
                num_attention_heads=int(given["num_attention_heads"]),
                intermediate_size=int(given["intermediate_size"]),
                max_tokens=int(given["max_position_embeddings"]),
                layer_norm_eps=float(given["layer_norm_eps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}/config.json: {error!r} is missing or no number") from None
        if min(config.hidden_size, config.num_attention_heads) < 1 or (
            config.hidden_size % config.num_attention_heads
        ):
            raise ModelFileError(f"{path}/config.json: heads do not divide the hidden size")
        return config


class _Tensors:
    """Tensors by name, each checked against the shape that the configuration implies."""

    def __init__(self, tensors: Mapping[str, Vectors], config: _Config) -> None:
        self._tensors = tensors
        self._config = config

    def __getitem__(self, name: str) -> Vectors:
        found = self._tensors.get(name, self._tensors.get(f"bert.{name}"))
        if found is None:
            raise ModelFileError(f"the model file has no tensor {name}")
        return np.ascontiguousarray(found, np.float32)

    def layer(self, index: int) -> _Layer:
        prefix, size, inner = (
            f"encoder.layer.{index}",
            self._config.hidden_size,
            self._config.intermediate_size,
        )
        parts = [
            self.linear(f"{prefix}.attention.self.{name}", size, size)
            for name in ("query", "key", "value")
        ]
        return _Layer(
            qkv=_Linear(
                np.concatenate([part.weight for part in parts], 1),
                np.concatenate([part.bias for part in parts]),
            ),
            out=self.linear(f"{prefix}.attention.output.dense", size, size),
            attention_norm=self.norm(f"{prefix}.attention.output.LayerNorm"),
            up=self.linear(f"{prefix}.intermediate.dense", size, inner),
            down=self.linear(f"{prefix}.output.dense", inner, size),
            norm=self.norm(f"{prefix}.output.LayerNorm"),
        )

    def linear(self, name: str, num_in: int, num_out: int) -> _Linear:
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        if weight.shape != (num_out, num_in) or bias.shape != (num_out,):
            raise ModelFileError(f"tensor {name} has shape {weight.shape}, not {(num_out, num_in)}")
        return _Linear(np.ascontiguousarray(weight.T), bias)

    def norm(self, name: str) -> _Norm:
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        if weight.shape != (self._config.hidden_size,) or bias.shape != weight.shape:
            raise ModelFileError(f"tensor {name} has shape {weight.shape}")
        return _Norm(weight, bias, self._config.layer_norm_eps)


def _gelu(x: Vectors) -> Vectors:
    """x times the normal distribution function; erf by 7.1.26 of Abramowitz and Stegun, exact to 2e-7."""
    z = np.abs(x) * np.float32(1 / math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = np.float32(1.061405429) * t - np.float32(1.453152027)
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
        poly = poly * t + np.float32(coefficient)
    tail = poly * t * np.exp(-z * z)  # 1 - erf(z)
    activated: Vectors = x * np.where(x < 0, tail, 2 - tail) * np.float32(0.5)
    return activated


def _json(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(given, dict):
        raise ModelFileError(f"{path} holds no object")
    return given
