"""Paged attention in decode and prefill, beside torch's own and, where installed, FlashAttention and FlashInfer.

The rivals read dense memory in equal lengths, which is the easier problem; FlashInfer reads pages as we do.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonet.bench.device.kernels.inputs import kv_bytes, layout, paged
from nonet.bench.device.kernels.problem import Bench, Calls, Problem

__all__ = ["decode", "prefill"]

DECODE = {
    "cuda": [(batch, length) for length in (1 << 10, 1 << 13, 1 << 15, 1 << 17) for batch in (1, 8, 32, 128)],
    "cpu": [(batch, length) for length in (1 << 8, 1 << 10) for batch in (1, 4)],
}  # fmt: skip
PREFILL = {
    "cuda": [(1, 1 << 10), (1, 1 << 11), (8, 1 << 11), (1, 1 << 13), (1, 1 << 15)],
    "cpu": [(1, 128), (1, 512)],
}
# The KV of one size; larger ones are left out.
MOST_BYTES = {"cuda": 20 << 30, "cpu": 1 << 30}
BACKENDS = {
    "cuda": {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION},
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
}


def decode(bench: Bench) -> Iterator[Problem]:
    """One query for each sequence."""
    for batch, length in DECODE[bench.device.type]:
        if batch * length * kv_bytes(bench) <= MOST_BYTES[bench.device.type]:
            yield _problem(bench, batch, 1, length)


def prefill(bench: Bench) -> Iterator[Problem]:
    """Whole prompts, causal."""
    for batch, length in PREFILL[bench.device.type]:
        yield _problem(bench, batch, length, length)


def _problem(bench: Bench, batch: int, queries: int, length: int) -> Problem:
    spec = bench.spec
    wide = spec.num_heads * spec.head_dim
    pairs = queries * length - queries * (queries - 1) // 2
    kv = batch * length * kv_bytes(bench)
    held = bench.kv_format.name if bench.kv_format else "dense"

    def make() -> Calls:
        copies = bench.copies(kv)
        problem = paged(bench, batch=batch, queries=queries, length=length, copies=copies)
        q = bench.activations(batch * queries, wide)
        return [
            lambda one=one: bench.ops.attention(  # type: ignore[misc]
                q, layout(bench), problem.cache, one, scale=spec.scale, window=None, softcap=None
            )
            for one in problem.inputs
        ]

    rivals = {
        f"SDPA {name}": _dense(bench, batch, queries, length, _sdpa(backend))
        for name, backend in BACKENDS[bench.device.type].items()
    }
    if bench.is_gpu and importlib.util.find_spec("flash_attn") is not None:
        rivals["FlashAttention"] = _dense(bench, batch, queries, length, _flash_attention())
    if bench.is_gpu and importlib.util.find_spec("flashinfer") is not None:
        rivals["FlashInfer"] = _flashinfer(bench, batch, queries, length)
    return Problem(
        case={"batch": batch, "queries": queries, "context": length, "kv": held},
        num_bytes=kv + 2 * batch * queries * wide * bench.activation_bytes,
        flops=4 * batch * wide * pairs,
        make=make,
        rivals=rivals,
    )  # fmt: skip


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]


def _dense(
    bench: Bench, batch: int, queries: int, length: int, attend: Attend
) -> Callable[[], Calls]:
    """Calls of `attend(q, k, v)` on [batch, heads, tokens, D]."""

    def make() -> Calls:
        spec = bench.spec
        each = 2 * batch * length * spec.num_kv_heads * spec.head_dim * bench.element_bytes
        q = bench.random(batch, spec.num_heads, queries, spec.head_dim)
        pairs = [
            [bench.random(batch, spec.num_kv_heads, length, spec.head_dim) for _ in range(2)]
            for _ in range(bench.copies(each))
        ]
        return [lambda k=k, v=v: attend(q, k, v) for k, v in pairs]  # type: ignore[misc]

    return make


def _sdpa(backend: SDPBackend) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
            )

    return attend


def _flash_attention() -> Attend:
    function = importlib.import_module("flash_attn").flash_attn_func

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        return function(*(one.transpose(1, 2) for one in (q, k, v)), causal=True)

    return attend


def _flashinfer(bench: Bench, batch: int, queries: int, length: int) -> Callable[[], Calls]:
    """Its wrapper for pages of our size, planned beforehand: the plan is host work and is not timed."""

    def make() -> Calls:
        flashinfer = importlib.import_module("flashinfer")
        spec, size, device = bench.spec, bench.block_size, bench.device
        each = -(-length // size)
        pages = bench.random(batch * each, 2, size, spec.num_kv_heads, spec.head_dim)
        starts = (torch.arange(batch + 1) * each).int().to(device)
        ids = torch.randperm(batch * each).int().to(device)
        last = torch.full((batch,), length - (each - 1) * size, dtype=torch.int32, device=device)
        room = torch.empty(256 << 20, dtype=torch.uint8, device=device)
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, size)
        if queries == 1:
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                room, "NHD", use_tensor_cores=True
            )
            wrapper.plan(starts, ids, last, *sizes, q_data_type=bench.ops.dtype)
        else:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(room, "NHD")
            rows = (torch.arange(batch + 1) * queries).int().to(device)
            wrapper.plan(rows, starts, ids, last, *sizes, causal=True, q_data_type=bench.ops.dtype)
        q = bench.random(batch * queries, spec.num_heads, spec.head_dim)
        return [lambda: wrapper.run(q, pages)] * 4

    return make
