"""Steps of paged attention for the tests of the Triton kernels: a mix of sequences, shuffled blocks, poisoned memory.

On a machine with an NVIDIA GPU the kernels run compiled; elsewhere Triton's interpreter runs them on the CPU, which
must be chosen before they are imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import AttentionInputs, LayerCache, Ops, QKVLayout
from nonet.kernels.reference.ops import ReferenceOps
from nonet.kv.format import KV_FORMATS

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter multiplies bfloat16 matrices wrongly.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
# What numpy says of the interpreter's own code, and of exp(x) = inf, which the kernels allow for.
INTERPRETER_WARNINGS = (
    "ignore:Conversion of an array with ndim:DeprecationWarning",
    "ignore:overflow encountered in exp:RuntimeWarning",
)
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences as (queries in this step, entries in the cache afterwards)."""

    sequences: tuple[tuple[int, int], ...]
    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    q_norm: bool = False
    padding: int = 0  # rows of a bucket behind the last sequence: slot -1, nothing in the cache
    kv_format: str | None = None

    @property
    def format(self) -> KVFormat | None:
        return None if self.kv_format is None else KV_FORMATS.build(self.kv_format)

    @property
    def layout(self) -> QKVLayout:
        return QKVLayout(self.heads, self.kv_heads, self.dim)

    @property
    def num_blocks(self) -> int:
        return 2 + sum(-(-length // self.block_size) for _, length in self.sequences)

    @property
    def num_tokens(self) -> int:
        return sum(queries for queries, _ in self.sequences)


@dataclass(frozen=True, slots=True)
class Step:
    """Everything a layer's rope_store and attention are given, on one device."""

    qkv: torch.Tensor
    inputs: AttentionInputs
    cos_sin: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> Step:
        inputs = self.inputs
        return Step(
            self.qkv.to(device, dtype, copy=True),
            AttentionInputs(
                positions=inputs.positions.to(device),
                query_start=inputs.query_start.to(device),
                kv_len=inputs.kv_len.to(device),
                block_table=inputs.block_table.to(device),
                slots=inputs.slots.to(device),
                max_query_len=inputs.max_query_len,
                max_kv_len=inputs.max_kv_len,
            ),
            self.cos_sin.to(device),
            None if self.q_norm is None else self.q_norm.to(device),
            None if self.k_norm is None else self.k_norm.to(device),
        )


def tables(case: Case, generator: torch.Generator) -> torch.Tensor:
    """int32 [S, max_blocks], shuffled blocks; block 0 is the null block."""
    counts = [-(-length // case.block_size) for _, length in case.sequences]
    order = torch.randperm(case.num_blocks - 1, generator=generator) + 1
    table = torch.zeros(len(counts) + case.padding, max([1, *counts]), dtype=torch.int32)
    for seq, blocks in enumerate(order[: sum(counts)].split(counts)):
        table[seq, : len(blocks)] = blocks
    return table


def step_of(
    case: Case, spans: list[tuple[int, int]], table: torch.Tensor, generator: torch.Generator
) -> Step:
    """The step that computes tokens [start, stop) of each sequence, in float32 on the CPU."""
    size, pad = case.block_size, case.padding
    queries = torch.tensor([0] + [stop - start for start, stop in spans] + [0] * pad)
    positions = torch.cat([torch.arange(start, stop) for start, stop in spans])
    owner = torch.repeat_interleave(torch.arange(len(spans)), queries[1 : len(spans) + 1])
    slots = table[owner, positions // size] * size + positions % size
    width = (case.heads + 2 * case.kv_heads) * case.dim
    qkv = torch.randn(len(positions) + pad, width, generator=generator)
    angles = torch.rand(max(stop for _, stop in spans) + 1, case.dim // 2, generator=generator) * 6
    inputs = AttentionInputs(
        positions=torch.cat((positions, torch.zeros(pad))).int(),
        query_start=queries.cumsum(0).int(),
        kv_len=torch.tensor([stop for _, stop in spans] + [0] * pad, dtype=torch.int32),
        block_table=table,
        slots=torch.cat((slots, torch.full((pad,), -1))).int(),
        max_query_len=int(queries.max()),
        max_kv_len=max(stop for _, stop in spans),
    )
    norms = [
        torch.rand(case.dim, generator=generator) + 0.5 if case.q_norm else None for _ in range(2)
    ]
    return Step(qkv, inputs, torch.cat((angles.cos(), angles.sin()), 1), norms[0], norms[1])


def steps(case: Case, seed: int = 0) -> tuple[Step | None, Step]:
    """(what fills the cache before, the step itself)."""
    generator = torch.Generator().manual_seed(seed)
    table = tables(case, generator)
    past = [(0, length - queries) for queries, length in case.sequences]
    before = step_of(case, past, table, generator) if any(stop for _, stop in past) else None
    spans = [(length - queries, length) for queries, length in case.sequences]
    return before, step_of(case, spans, table, generator)


def poisoned_cache(ops: Ops, case: Case) -> LayerCache:
    """Nothing of it is a number: with a format, the codes are large and the scales NaN."""
    cache = ops.allocate_cache(
        case.num_blocks, case.block_size, case.kv_heads, case.dim, case.format
    )
    poisoned = (cache.keys, cache.values)
    if case.format is not None:
        for codes in poisoned:
            codes.view(torch.uint8).fill_(0x7E)
        poisoned = (cache.key_scales, cache.value_scales)
    for tensor in poisoned:
        tensor.fill_(float("nan"))
    return cache


def share_near(rounded: torch.Tensor, exact: torch.Tensor) -> float:
    """Share of the numbers that are within half a step of e4m3; the interpreter's cast loses a carry now and then."""
    limit = exact.abs() / 16 * 1.01 + 1e-3
    return ((rounded - exact).abs() <= limit).float().mean().item()


def run(ops: Ops, case: Case, cache: LayerCache, step: Step) -> torch.Tensor:
    """rope_store and attention of one step, on the ops' device and dtype."""
    mine = step.to(ops.device, ops.dtype)
    q = rotate_and_store(ops, case, cache, mine)
    return ops.attention(
        q,
        case.layout,
        cache,
        mine.inputs,
        scale=case.dim**-0.5,
        window=case.window,
        softcap=case.softcap,
    )


def rotate_and_store(ops: Ops, case: Case, cache: LayerCache, step: Step) -> torch.Tensor:
    return ops.rope_store(
        step.qkv,
        case.layout,
        step.cos_sin,
        cache,
        step.inputs,
        step.q_norm,
        step.k_norm,
        1e-6,
    )


def attend(
    ops: Ops, case: Case, seed: int = 0, given: torch.dtype = torch.float32
) -> tuple[torch.Tensor, LayerCache]:
    """Run the step on a poisoned cache in which the reference has stored all that came before it.

    The step's own numbers are rounded to `given` first: what is compared must be given the same, or codes differ.
    """
    before, step = steps(case, seed)
    step = step.to(torch.device("cpu"), given)
    cache = poisoned_cache(ops, case)
    if before is not None:
        specification = ReferenceOps(torch.float32, torch.device("cpu"))
        past = poisoned_cache(specification, case)
        rotate_and_store(specification, case, past, before)
        heads_first = ops.name == "triton"
        for mine, theirs in zip(_tensors(cache), _tensors(past), strict=True):
            mine.copy_(theirs.transpose(1, 2) if heads_first else theirs)
    return run(ops, case, cache, step)[: case.num_tokens].float().cpu(), cache


def _tensors(cache: LayerCache) -> list[torch.Tensor]:
    """Keys and values, or their codes as bytes, and scales."""
    if cache.format is None:
        return [cache.keys, cache.values]
    codes = [tensor.view(torch.uint8) for tensor in (cache.keys, cache.values)]
    return [*codes, cache.key_scales, cache.value_scales]
