"""Steps of paged attention for tests of the native kernels: mixed sequences, shuffled blocks, poisoned memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import AttentionInputs, LayerCache, Ops, QKVLayout
from nonet.kv.format import KV_FORMATS


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


@dataclass(frozen=True, slots=True)
class History:
    """What every token of every sequence brings, whatever step computes it: qkv [kv_len, (H + 2 K) D] each."""

    case: Case
    rows: tuple[torch.Tensor, ...]
    tables: torch.Tensor  # int32 [S, max_blocks]

    def inputs(self, spans: list[tuple[int, int]]) -> tuple[torch.Tensor, AttentionInputs]:
        """The step that computes tokens [start, stop) of each sequence: its qkv rows and inputs."""
        size = self.case.block_size
        positions = torch.cat([torch.arange(start, stop) for start, stop in spans])
        tables = [table.repeat_interleave(size) * size for table in self.tables]
        slots = torch.cat(
            [
                tables[seq][start:stop] + torch.arange(start, stop) % size
                for seq, (start, stop) in enumerate(spans)
            ]
        )
        lengths = torch.tensor([0] + [stop - start for start, stop in spans])
        qkv = torch.cat([self.rows[seq][start:stop] for seq, (start, stop) in enumerate(spans)])
        return qkv, AttentionInputs(
            positions=positions.int(),
            query_start=lengths.cumsum(0).int(),
            kv_len=torch.tensor([stop for _, stop in spans], dtype=torch.int32),
            block_table=self.tables,
            slots=slots.int(),
            max_query_len=int(lengths.max()),
            max_kv_len=max((stop for _, stop in spans), default=0),
        )


def history(case: Case, seed: int = 0) -> History:
    generator = torch.Generator().manual_seed(seed)
    width = (case.heads + 2 * case.kv_heads) * case.dim
    # Numbers that bfloat16 holds exactly, so that rounding inputs is no difference between the implementations.
    rows = tuple(
        torch.randn(length, width, generator=generator).bfloat16().float()
        for _, length in case.sequences
    )
    order = (
        torch.randperm(case.num_blocks - 1, generator=generator) + 1
    )  # block 0 is the null block
    counts = [-(-length // case.block_size) for _, length in case.sequences]
    tables = torch.zeros(len(counts), max([1, *counts]), dtype=torch.int32)
    for seq, blocks in enumerate(order[: sum(counts)].split(counts)):
        tables[seq, : len(blocks)] = blocks
    return History(case, rows, tables)


def no_rotation(case: Case) -> torch.Tensor:
    longest = max(length for _, length in case.sequences)
    half = case.dim // 2
    return torch.cat((torch.ones(longest, half), torch.zeros(longest, half)), dim=1)


def poisoned_cache(ops: Ops, case: Case) -> LayerCache:
    """Nothing of it is a number: with a format, the codes are large and the scales NaN."""
    cache = ops.allocate_cache(
        case.num_blocks, case.block_size, case.kv_heads, case.dim, case.format
    )
    poisoned = (cache.keys, cache.values)
    if case.format is not None:
        for codes in poisoned:
            codes.fill_(0x7E)
        poisoned = (cache.key_scales, cache.value_scales)
    for tensor in poisoned:
        tensor.fill_(float("nan"))
    return cache


def run_step(
    ops: Ops,
    case: Case,
    cache: LayerCache,
    step: tuple[torch.Tensor, AttentionInputs],
    cos_sin: torch.Tensor,
) -> torch.Tensor:
    qkv, inputs = step
    q = ops.rope_store(qkv.clone(), case.layout, cos_sin, cache, inputs, None, None, 1e-6)
    return ops.attention(
        q,
        case.layout,
        cache,
        inputs,
        scale=case.dim**-0.5,
        window=case.window,
        softcap=case.softcap,
    )


def attend(
    ops: Ops, case: Case, past: History, cos_sin: torch.Tensor | None = None
) -> torch.Tensor:
    """Fill a poisoned cache with all but the last queries of each sequence, then run the step."""
    cos_sin = no_rotation(case) if cos_sin is None else cos_sin
    cache = poisoned_cache(ops, case)
    before = [(0, length - queries) for queries, length in case.sequences]
    qkv, inputs = past.inputs(before)
    if len(qkv):
        ops.rope_store(qkv.clone(), case.layout, cos_sin, cache, inputs, None, None, 1e-6)
    spans = [(length - queries, length) for queries, length in case.sequences]
    return run_step(ops, case, cache, past.inputs(spans), cos_sin)
