"""Weights of a GGUF file under their Hugging Face names and row orders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.gguf import GGUFFile, TensorInfo
from nonet.core.model_spec import Family
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.weights.gguf_blocks import BLOCK_FORMATS, unpack_blocks
from nonet.weights.gguf_spec import gguf_spec

__all__ = ["GGUFSource"]


class GGUFSource:
    """A `WeightSource` over one GGUF file.

    >>> source = GGUFSource(path)  # doctest: +SKIP
    >>> source.load("model.norm.weight").dtype  # doctest: +SKIP
    torch.float32
    """

    format = "gguf"

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._file = GGUFFile.open(path)
        try:
            self._stored = self._translate()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> Sequence[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].info.shape

    def load(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        info = stored.info
        if info.kind in _FLOAT_TYPES:
            number, dtype = _FLOAT_TYPES[info.kind]
            flat = np.frombuffer(self._file.raw(info.name), number).copy()  # the file is read-only
            values = torch.from_numpy(flat).view(dtype).view(info.shape)
        else:
            values = self._unpack(info).dequantize().view(info.shape)
        return stored.in_order(values)

    def load_codes(self, name: str) -> GroupwiseTensor | None:
        stored = self._stored[name]
        if stored.info.kind not in BLOCK_FORMATS or len(stored.info.shape) != 2:
            return None
        codes = self._unpack(stored.info)
        return GroupwiseTensor(
            stored.in_order(codes.codes),
            stored.in_order(codes.scale),
            stored.in_order(codes.minimum),
            codes.group,
            codes.bits,
        )

    def close(self) -> None:
        self._file.close()

    def _unpack(self, info: TensorInfo) -> GroupwiseTensor:
        columns = info.shape[-1]
        rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        return unpack_blocks(info.kind, self._file.raw(info.name), rows, columns)

    def _translate(self) -> dict[str, _Stored]:
        spec = gguf_spec(self._file, str(self._path))
        # Files of architecture `llama` keep the two halves of each head of q and k interleaved.
        interleaved = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}
        stored: dict[str, _Stored] = {}
        for info in self._file.tensors.values():
            name = _hugging_face_name(info.name, spec.family)
            if name is None:
                continue
            if info.kind not in BLOCK_FORMATS and info.kind not in _FLOAT_TYPES:
                raise UnsupportedModelError(
                    f"{self._path}: tensor {info.name!r} is stored as {info.kind}, which nonet cannot read; it reads "
                    f"{', '.join([*_FLOAT_TYPES, *BLOCK_FORMATS])}"
                )
            heads = interleaved.get(name.split(".")[-2], 0) if spec.family == "llama" else 0
            if heads and info.shape[0] % (2 * heads):
                raise ModelFileError(
                    f"{self._path}: tensor {info.name!r} has {info.shape[0]} rows, which {heads} heads cannot share"
                )
            stored[name] = _Stored(info, heads)
        return stored


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of the file; `heads` is not 0 where the rows of each head are interleaved."""

    info: TensorInfo
    heads: int

    def in_order(self, values: torch.Tensor) -> torch.Tensor:
        """Rows as Hugging Face has them: within a head, first all even rows, then all odd ones."""
        if not self.heads:
            return values
        pairs = values.view(self.heads, -1, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape)


_FLOAT_TYPES: dict[str, tuple[type[np.number], torch.dtype]] = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),  # numpy has no bfloat16: the bits are carried over
}

_LAYER_NUMBER = re.compile("0|[1-9][0-9]{0,3}")
_GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _hugging_face_name(name: str, family: Family) -> str | None:
    """None for what is no weight of a decoder, such as the table of RoPE divisors."""
    stem, _, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        return None
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{ending}"
    prefix, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    known = (_GEMMA_LAYER_NAMES if family == "gemma3" else _LAYER_NAMES).get(part)
    if prefix != "blk" or known is None or not _LAYER_NUMBER.fullmatch(index):
        return None
    return f"model.layers.{index}.{known}.{ending}"
