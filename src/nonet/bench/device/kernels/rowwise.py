"""Operations on rows of activations: norms, the gate of the MLP, rotation with the write to the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nonet.bench.device.kernels.inputs import kv_bytes, layout, paged
from nonet.bench.device.kernels.problem import Bench, Calls, Problem

__all__ = ["gated", "rms_norm", "rope_store"]

TOKENS = {"cuda": (1, 64, 256, 8192), "cpu": (1, 8, 256)}


def rms_norm(bench: Bench) -> Iterator[Problem]:
    """`add_rms_norm`: reads x and residual, writes residual and the normed rows."""
    wide = bench.spec.hidden_size

    def make(tokens: int) -> Calls:
        weight = torch.ones(wide, device=bench.device)
        pairs = [
            (bench.activations(tokens, wide), bench.activations(tokens, wide))
            for _ in range(bench.copies(2 * tokens * wide * bench.activation_bytes))
        ]
        return [lambda x=x, r=r: bench.ops.add_rms_norm(x, r, weight, 1e-5) for x, r in pairs]  # type: ignore[misc]

    for tokens in TOKENS[bench.device.type]:
        yield Problem(
            case={"T": tokens, "width": wide},
            num_bytes=4 * tokens * wide * bench.activation_bytes,
            flops=4 * tokens * wide,
            make=lambda tokens=tokens: make(tokens),  # type: ignore[misc]
        )


def gated(bench: Bench) -> Iterator[Problem]:
    """Reads both halves, writes one."""
    wide = bench.spec.intermediate_size

    def make(tokens: int) -> Calls:
        copies = bench.copies(2 * tokens * wide * bench.activation_bytes)
        rows = [bench.activations(tokens, 2 * wide) for _ in range(copies)]
        return [lambda x=x: bench.ops.gated(x, bench.spec.activation) for x in rows]  # type: ignore[misc]

    for tokens in TOKENS[bench.device.type]:
        yield Problem(
            case={"T": tokens, "width": wide},
            num_bytes=3 * tokens * wide * bench.activation_bytes,
            flops=5 * tokens * wide,
            make=lambda tokens=tokens: make(tokens),  # type: ignore[misc]
        )


def rope_store(bench: Bench) -> Iterator[Problem]:
    """Reads q, k and v, writes rotated q, and k and v into the cache in its format."""
    spec = bench.spec
    heads = spec.num_heads + 2 * spec.num_kv_heads

    def make(tokens: int) -> Calls:
        table = torch.rand(tokens, spec.head_dim, device=bench.device)
        problem = paged(bench, batch=1, queries=tokens, length=tokens, copies=1, stores=True)
        copies = bench.copies(tokens * heads * spec.head_dim * bench.activation_bytes)
        rows = [bench.activations(tokens, heads * spec.head_dim) for _ in range(copies)]
        return [
            lambda x=x: bench.ops.rope_store(  # type: ignore[misc]
                x, layout(bench), table, problem.cache, problem.inputs[0], None, None, 1e-5
            )
            for x in rows
        ]

    for tokens in TOKENS[bench.device.type]:
        read = heads * spec.head_dim * bench.activation_bytes + 4 * spec.head_dim
        written = spec.num_heads * spec.head_dim * bench.activation_bytes + kv_bytes(bench)
        yield Problem(
            case={"T": tokens, "heads": heads, "D": spec.head_dim},
            num_bytes=tokens * (read + written),
            flops=3 * tokens * (spec.num_heads + spec.num_kv_heads) * spec.head_dim,
            make=lambda tokens=tokens: make(tokens),  # type: ignore[misc]
        )
