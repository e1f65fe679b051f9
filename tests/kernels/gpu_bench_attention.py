"""Times paged attention in decode and prefill, next to torch's own attention, and compares kernels and tilings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonet.kernels.ops import AttentionInputs, LayerCache
from nonet.kernels.triton import attention_expanded
from nonet.kernels.triton.attention_decode import DecodeTiling, decode_tiling
from nonet.kernels.triton.attention_prefill import PrefillTiling
from nonet.kernels.triton.ops import TritonOps
from nonet.kv.format import KV_FORMATS
from tests.kernels.gpu_timing import DEVICE, DTYPE, KV_BYTES, LAYOUT, Row, copies_for, seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """The same attention problem several times over, in different memory."""

    cache: LayerCache
    inputs: list[AttentionInputs]
    q: torch.Tensor

    @classmethod
    def make(
        cls, batch: int, queries: int, length: int, block: int, copies: int, kv_format: str = "auto"
    ) -> Problem:
        per_seq = -(-length // block)
        blocks = batch * per_seq * copies
        ops = TritonOps(DTYPE, DEVICE)
        given = KV_FORMATS.build(kv_format) if kv_format != "auto" else None
        cache = ops.allocate_cache(blocks + 1, block, 8, 128, given)
        for entries in (cache.keys, cache.values):
            numbers = torch.randn(entries.shape, device=DEVICE, dtype=DTYPE)
            entries.copy_(numbers * 30 if given else numbers)
        if given:
            cache.key_scales.fill_(1 / 30)
            cache.value_scales.fill_(1 / 30)
        table = torch.randperm(blocks, device=DEVICE).int().view(copies, batch, per_seq) + 1
        inputs = [
            AttentionInputs(
                positions=torch.arange(length - queries, length, device=DEVICE).int().repeat(batch),
                query_start=(torch.arange(batch + 1, device=DEVICE) * queries).int(),
                kv_len=torch.full((batch,), length, dtype=torch.int32, device=DEVICE),
                block_table=table[copy],
                slots=torch.full((batch * queries,), -1, dtype=torch.int32, device=DEVICE),
                max_query_len=queries,
                max_kv_len=length,
            )
            for copy in range(copies)
        ]
        q = torch.randn(batch * queries, 4096, device=DEVICE, dtype=DTYPE)
        return cls(cache, inputs, q)

    def seconds(
        self, decode: DecodeTiling | None = None, prefill: PrefillTiling | None = None
    ) -> float:
        ops = TritonOps(DTYPE, DEVICE)
        scale = 128**-0.5
        return seconds(
            [
                lambda one=one: ops.paged_attention(
                    self.q, LAYOUT, self.cache, one, scale=scale, window=None, softcap=None,
                    decode=decode, prefill=prefill,
                )
                for one in self.inputs
            ]
        )  # fmt: skip


def sdpa_seconds(batch: int, queries: int, length: int, backend: SDPBackend) -> float:
    copies = copies_for(batch * length * KV_BYTES)
    q = torch.randn(batch, 32, queries, 128, device=DEVICE, dtype=DTYPE)
    kv = [torch.randn(2, batch, 8, length, 128, device=DEVICE, dtype=DTYPE) for _ in range(copies)]

    def call(pair: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, pair[0], pair[1], is_causal=queries > 1, enable_gqa=True
            )

    return seconds([lambda pair=pair: call(pair) for pair in kv])


DECODE_CASES = [
    (1, 1024), (1, 8192), (1, 65536), (8, 1024), (8, 8192), (32, 1024), (64, 145), (64, 1024),
    (128, 1024), (256, 256), (256, 1024), (16, 8192), (128, 8192), (16, 65536),
]  # fmt: skip
PREFILL_CASES = [(1, 1024), (8, 2048), (1, 2048), (1, 8192), (1, 32768)]


def decode_attention(block: int, with_sdpa: bool) -> list[Row]:
    rows: list[Row] = []
    for batch, length in DECODE_CASES:
        kv_bytes = batch * length * KV_BYTES
        problem = Problem.make(batch, 1, length, block, copies_for(kv_bytes))
        one = problem.seconds()
        row: Row = {"what": "decode attention", "batch": batch, "context": length, "block": block,
                    "us": one * 1e6, "TBps": kv_bytes / one / 1e12}  # fmt: skip
        del problem
        if with_sdpa:
            for name, backend in (
                ("cudnn", SDPBackend.CUDNN_ATTENTION),
                ("flash", SDPBackend.FLASH_ATTENTION),
            ):
                row[f"{name}_us"] = sdpa_seconds(batch, 1, length, backend) * 1e6
        rows.append(row)
    return rows


def few_decodes(block: int) -> list[Row]:
    """Decode attention of very few sequences: spread over a fixed grid, as the product does, and in even shares."""
    tiling = decode_tiling(128, DTYPE.itemsize, TritonOps(DTYPE, DEVICE).multiprocessors)
    rows: list[Row] = []
    for batch in (1, 2, 4):
        for length in (256, 1024, 4096, 32768):
            problem = Problem.make(batch, 1, length, block, copies_for(batch * length * KV_BYTES))
            spread, shares = problem.seconds(), problem.seconds(decode=tiling)
            rows.append(
                {"what": "decode attention of few", "batch": batch, "context": length, "block": block,
                 "spread_us": spread * 1e6, "shares_us": shares * 1e6}
            )  # fmt: skip
    return rows


def prefill_attention(block: int, with_sdpa: bool) -> list[Row]:
    rows: list[Row] = []
    for batch, length in PREFILL_CASES:
        flops = batch * 4 * length * length / 2 * 4096
        one = Problem.make(batch, length, length, block, 3).seconds()
        row: Row = {"what": "prefill attention", "batch": batch, "context": length, "block": block,
                    "us": one * 1e6, "TFLOPs": flops / one / 1e12}  # fmt: skip
        if with_sdpa:
            for name, backend in (
                ("cudnn", SDPBackend.CUDNN_ATTENTION),
                ("flash", SDPBackend.FLASH_ATTENTION),
            ):
                row[f"{name}_TFLOPs"] = flops / sdpa_seconds(batch, length, length, backend) / 1e12
        rows.append(row)
    return rows


def tune_decode(block: int) -> list[Row]:
    cases = [(1, 1024), (1, 16384), (8, 1024), (64, 1024), (16, 8192), (256, 256)]
    problems = {
        case: Problem.make(case[0], 1, case[1], block, copies_for(case[0] * case[1] * KV_BYTES))
        for case in cases
    }
    rows: list[Row] = []
    for tile, warps, stages, per_sm in (
        (64, 4, 3, 2), (64, 4, 3, 3), (64, 4, 3, 4), (64, 4, 3, 6), (64, 4, 3, 9), (64, 4, 4, 2),
        (64, 4, 4, 4), (128, 4, 2, 1), (128, 4, 2, 3), (128, 8, 3, 1),
    ):  # fmt: skip
        tiling = DecodeTiling(tile=tile, warps=warps, stages=stages, programs=132 * per_sm)
        row: Row = {
            "what": "tune decode",
            "block": block,
            "tiling": f"{tile}/{warps}/{stages}/{per_sm}",
        }
        rows.append(row | _decodes(problems, tiling))
    return rows


def _decodes(problems: dict[tuple[int, int], Problem], tiling: DecodeTiling) -> Row:
    found: Row = {}
    for (batch, length), problem in problems.items():
        try:
            found[f"b{batch}x{length}"] = problem.seconds(decode=tiling) * 1e6
        except Exception as error:  # a tiling that does not fit is a result
            found["error"] = str(error)[:60]
    return found


def tune_decode_of_many(kv_format: str) -> list[Row]:
    """Decode of batches: entries taken at a time, and programs of a multiprocessor."""
    cases = [(8, 256), (32, 256), (64, 256), (256, 256), (256, 600), (512, 256), (16, 8192)]
    problems = {
        case: Problem.make(
            case[0], 1, case[1], 64, copies_for(case[0] * case[1] * KV_BYTES // 2), kv_format
        )
        for case in cases
    }
    rows: list[Row] = []
    for tile, warps, stages, per_sm in (
        (64, 4, 3, 2), (64, 4, 3, 3), (64, 2, 3, 4), (64, 2, 3, 5), (64, 2, 4, 4), (64, 2, 2, 6), (64, 2, 3, 6),
        (32, 2, 4, 6), (32, 2, 3, 8), (32, 1, 4, 8), (32, 1, 3, 8), (64, 1, 3, 4), (128, 2, 2, 4),
    ):  # fmt: skip
        tiling = DecodeTiling(tile=tile, warps=warps, stages=stages, programs=132 * per_sm)
        row: Row = {"what": f"tune {kv_format}", "tiling": f"{tile}/{warps}/{stages}/{per_sm}"}
        rows.append(row | _decodes(problems, tiling))
    return rows


def tune_prefill(block: int, kv_format: str = "auto") -> list[Row]:
    cases = [(8, 2048), (1, 8192)]
    problems = {
        case: Problem.make(case[0], case[1], case[1], block, 2, kv_format) for case in cases
    }
    rows: list[Row] = []
    for size, tile, warps, stages in (
        (64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 4, 3),
    ):  # fmt: skip
        tiling = PrefillTiling(rows=size, tile=tile, warps=warps, stages=stages)
        row: Row = {
            "what": f"tune prefill {kv_format}",
            "block": block,
            "tiling": f"{size}/{tile}/{warps}/{stages}",
        }
        for (batch, length), problem in problems.items():
            try:
                flops = batch * 2 * length * length * 4096
                row[f"b{batch}x{length}_TFLOPs"] = flops / problem.seconds(prefill=tiling) / 1e12
            except Exception as error:  # a tiling that does not fit is a result
                row["error"] = str(error)[:60]
        rows.append(row)
    return rows


def expanded_prefill() -> list[Row]:
    """Prefill over fp8 entries as codes and as numbers made once, and over bf16."""
    rows: list[Row] = []
    usual = attention_expanded.FROM_TOKENS
    for batch, length in ((8, 2048), (1, 8192), (2, 512)):
        flops = batch * 2 * length * length * 4096
        row: Row = {"what": "prefill over codes", "batch": batch, "context": length}
        for name, kv_format, from_tokens in (
            ("bf16", "auto", usual), ("as_numbers", "fp8", usual), ("as_codes", "fp8", 1 << 40),
        ):  # fmt: skip
            attention_expanded.FROM_TOKENS = from_tokens
            one = Problem.make(batch, length, length, 64, 2, kv_format).seconds()
            row |= {f"{name}_us": one * 1e6, f"{name}_TFLOPs": flops / one / 1e12}
        attention_expanded.FROM_TOKENS = usual
        rows.append(row)
    return rows
