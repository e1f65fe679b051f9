"""An adapter directory in PEFT's layout becomes an `Adapter`: every size is checked before a byte of data is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.lora.adapter import Adapter, HostFactors, LayerShape
from nonet.lora.settings import AdapterSettings, read_settings
from nonet.weights.safetensors_file import READABLE, StoredTensor, load_tensor, read_header
from nonet.weights.safetensors_source import text_model_name

__all__ = ["read_adapter"]

FILE = "adapter_model.safetensors"
HEADER_BYTES = 16 << 20  # far more than the names of any model take
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def read_adapter(
    name: str, folder: Path, layers: Sequence[LayerShape], *, max_rank: int, dtype: torch.dtype
) -> Adapter:
    """The adapter in `folder` for a model of these layers, in `dtype`, its scale multiplied into the second factors.

    ModelFileError: broken, or not made for this model. UnsupportedModelError: more than plain LoRA, or over `max_rank`.
    """
    settings = read_settings(folder)
    if settings.largest_rank > max_rank:
        raise UnsupportedModelError(
            f"{settings.where}: the rank is {settings.largest_rank} and max_lora_rank is {max_rank}; "
            f"start with max_lora_rank {settings.largest_rank}"
        )
    path = folder / FILE
    _check_size(path, layers, settings.largest_rank)
    pairs = _pairs(path, read_header(path), settings, layers)
    read = tuple(_host_factors(path, layer, pairs, settings, dtype) for layer in layers)
    return Adapter(name, f"{name}@{_digest(read)}", settings.largest_rank, read)


def _check_size(path: Path, layers: Sequence[LayerShape], rank: int) -> None:
    numbers = sum(rank * (layer.inputs + outputs) for layer in layers for outputs in layer.outputs)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror}; adapters are read from safetensors files only"
        ) from None
    if size > 4 * numbers + HEADER_BYTES:
        raise ModelFileError(
            f"{path}: {size} bytes, more than an adapter of rank {rank} for every linear layer of this model can have"
        )


def _pairs(
    path: Path,
    header: Mapping[str, StoredTensor],
    settings: AdapterSettings,
    layers: Sequence[LayerShape],
) -> dict[str, tuple[str, str]]:
    """Module name to the names of its two tensors, checked against the model's shapes."""
    shapes = {
        module: (outputs, layer.inputs)
        for layer in layers
        for module, outputs in zip(layer.names, layer.outputs, strict=True)
    }
    found: dict[str, dict[str, str]] = {}
    for stored in header:
        match = _TENSOR.fullmatch(stored)
        module = text_model_name(match[1]) if match else ""
        if match is None or module not in shapes:
            raise UnsupportedModelError(
                f"{path}: tensor {stored[:200]!r} adapts none of this model's linear layers; attention and MLP "
                "projections are served, not embeddings or the output head"
            )
        if match[2] in found.setdefault(module, {}):
            raise ModelFileError(f"{path}: two tensors are lora_{match[2]} of {module}")
        found[module][match[2]] = stored
        _check_tensor(
            path, stored, header[stored], match[2], settings.rank_of(module), shapes[module]
        )
    for module, pair in found.items():
        if len(pair) == 1:
            missing = "A" if "B" in pair else "B"
            raise ModelFileError(f"{path}: {module} has no lora_{missing}; the file is incomplete")
    expected = settings.expected(list(shapes))
    if expected is not None and expected != found.keys():
        missing_ones, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
        what = f"lacks {missing_ones[0]}" if missing_ones else f"holds {extra[0]}"
        raise ModelFileError(
            f"{path}: it {what}, which does not agree with target_modules in {settings.where}"
        )
    if not found:
        raise ModelFileError(f"{path}: the file adapts no layer")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _check_tensor(
    path: Path, name: str, tensor: StoredTensor, factor: str, rank: int, shape: tuple[int, int]
) -> None:
    wanted = (rank, shape[1]) if factor == "A" else (shape[0], rank)
    if tensor.shape != wanted:
        raise ModelFileError(
            f"{path}: tensor {name!r} has shape {tensor.shape}; with rank {rank} and this model's layer of "
            f"{shape[0]} x {shape[1]} it must be {wanted}"
        )
    if tensor.dtype not in READABLE:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has dtype {tensor.dtype}; nonet reads {', '.join(READABLE)}"
        )


def _host_factors(
    path: Path,
    layer: LayerShape,
    pairs: Mapping[str, tuple[str, str]],
    settings: AdapterSettings,
    dtype: torch.dtype,
) -> HostFactors | None:
    ranks = [settings.rank_of(module) if module in pairs else 0 for module in layer.names]
    if not any(ranks):
        return None
    first = torch.zeros(len(ranks), max(ranks), layer.inputs, dtype=dtype)
    second = torch.zeros(max(ranks), sum(layer.outputs), dtype=dtype)
    start = 0
    for part, (module, rank, end) in enumerate(zip(layer.names, ranks, layer.ends, strict=True)):
        if rank:
            a, b = (_finite(path, name) for name in pairs[module])
            first[part, :rank] = a.to(dtype)
            second[:rank, start:end] = (b.float().T * settings.scale_of(module)).to(dtype)
        start = end
    return HostFactors(first, second, tuple(ranks))


def _finite(path: Path, name: str) -> torch.Tensor:
    tensor = load_tensor(path, name)
    if not tensor.isfinite().all():
        raise ModelFileError(f"{path}: tensor {name!r} holds values that are not finite")
    return tensor


def _digest(layers: Sequence[HostFactors | None]) -> str:
    digest = hashlib.sha256()
    for number, factors in enumerate(layers):
        if factors is None:
            continue
        for tensor in (factors.first, factors.second):
            digest.update(f"{number} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
