"""Times the Triton kernels and whole steps of the Llama-3.1-8B shape on one GPU, next to the device's own ceilings.

    python -m tests.kernels.gpu_bench [SECTION ...] [--out results.json]

Inputs are random and rotate over more memory than the L2 holds; every time is a median over replays of one CUDA graph,
so launches by the host do not count, except in the prefill of whole steps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.kernels.ops import AttentionInputs, LayerCache, PackedLinear, QKVLayout, StepShape
from nonet.kernels.triton.attention_decode import DecodeTiling
from nonet.kernels.triton.attention_prefill import PrefillTiling
from nonet.kernels.triton.ops import TritonOps
from nonet.layers.forward_step import ForwardStep
from nonet.models.decoder import Decoder
from nonet.models.llama import LlamaBlock

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
LAYOUT = QKVLayout(32, 8, 128)
KV_BYTES = 2 * 8 * 128 * 2  # of one token in one layer
WORKING_SET = 400 << 20

LLAMA_8B = ModelSpec(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131072,
    norm_eps=1e-5,
    rope=RopeSpec(500000.0),
)

Row = dict[str, str | float]


def seconds(calls: list[Callable[[], object]], repeats: int = 7) -> float:
    """Median seconds of one call, all calls captured in one graph."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return timed(graph.replay, repeats) / len(calls)


def timed(call: Callable[[], object], repeats: int = 7) -> float:
    times: list[float] = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


def ceilings() -> list[Row]:
    source = torch.randn(1 << 30, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / timed(lambda: target.copy_(source))
    read = source.nbytes / timed(lambda: source.view(torch.int32).sum(dtype=torch.int32))
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in range(2))
    gemm = 2 * 8192**3 / seconds([lambda: a @ b] * 5)
    return [
        {
            "what": "ceilings",
            "copy_TBps": copy / 1e12,
            "read_TBps": read / 1e12,
            "gemm_TFLOPs": gemm / 1e12,
        }
    ]


@dataclass(frozen=True, slots=True)
class Problem:
    """The same attention problem several times over, in different memory."""

    cache: LayerCache
    inputs: list[AttentionInputs]
    q: torch.Tensor

    @classmethod
    def make(cls, batch: int, queries: int, length: int, block: int, copies: int) -> Problem:
        per_seq = -(-length // block)
        blocks = batch * per_seq * copies
        ops = TritonOps(DTYPE, DEVICE)
        cache = ops.allocate_cache(blocks + 1, block, 8, 128)
        cache.keys.normal_()
        cache.values.normal_()
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


def copies_for(kv_bytes: int) -> int:
    return max(2, min(32, WORKING_SET // kv_bytes))


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
        (64, 4, 3, 1), (64, 4, 3, 2), (64, 4, 2, 2), (64, 4, 2, 3), (64, 4, 4, 1), (32, 4, 3, 3),
        (32, 4, 4, 3), (32, 2, 4, 3), (64, 2, 3, 2), (128, 4, 2, 1), (128, 8, 2, 1), (128, 8, 3, 1),
        (32, 2, 3, 4), (64, 8, 3, 2), (32, 4, 6, 2),
    ):  # fmt: skip
        tiling = DecodeTiling(tile=tile, warps=warps, stages=stages, programs=132 * per_sm)
        row: Row = {
            "what": "tune decode",
            "block": block,
            "tiling": f"{tile}/{warps}/{stages}/{per_sm}",
        }
        for (batch, length), problem in problems.items():
            try:
                row[f"b{batch}x{length}"] = problem.seconds(decode=tiling) * 1e6
            except Exception as error:  # noqa: BLE001 (a tiling that does not fit is a result)
                row["error"] = str(error)[:60]
        rows.append(row)
    return rows


def tune_prefill(block: int) -> list[Row]:
    cases = [(8, 2048), (1, 8192)]
    problems = {case: Problem.make(case[0], case[1], case[1], block, 2) for case in cases}
    rows: list[Row] = []
    for size, tile, warps, stages in (
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 8, 4),
        (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 8, 4), (128, 32, 4, 3), (64, 128, 4, 2),
    ):  # fmt: skip
        tiling = PrefillTiling(rows=size, tile=tile, warps=warps, stages=stages)
        row: Row = {
            "what": "tune prefill",
            "block": block,
            "tiling": f"{size}/{tile}/{warps}/{stages}",
        }
        for (batch, length), problem in problems.items():
            try:
                flops = batch * 2 * length * length * 4096
                row[f"b{batch}x{length}_TFLOPs"] = flops / problem.seconds(prefill=tiling) / 1e12
            except Exception as error:  # noqa: BLE001 (a tiling that does not fit is a result)
                row["error"] = str(error)[:60]
        rows.append(row)
    return rows


def row_wise() -> list[Row]:
    """Bytes that must move over time, of the fused kernels."""
    ops = TritonOps(DTYPE, DEVICE)
    weight = torch.rand(4096, device=DEVICE)
    cos_sin = torch.rand(4096, 128, device=DEVICE)
    rows: list[Row] = []
    for tokens in (1, 64, 256, 16384):
        copies = copies_for(tokens * 6144 * 2)
        x, residual = (
            [torch.randn(tokens, 4096, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
            for _ in range(2)
        )
        wide = [
            torch.randn(tokens, 28672, device=DEVICE, dtype=DTYPE) for _ in range(min(copies, 8))
        ]
        qkv = [torch.randn(tokens, 6144, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        problem = Problem.make(1, tokens, tokens, 64, 1)
        inputs = problem.inputs[0]
        inputs.slots.copy_(torch.randperm(problem.cache.keys.shape[0] * 64, device=DEVICE)[:tokens])
        inputs.positions.remainder_(4096)
        calls: dict[str, tuple[list[Callable[[], object]], int]] = {
            "add_rms_norm": (
                [lambda a=a, b=b: ops.add_rms_norm(a, b, weight, 1e-5) for a, b in zip(x, residual, strict=True)],
                4 * 4096 * 2,
            ),
            "gated": ([lambda a=a: ops.gated(a, "silu") for a in wide], 3 * 14336 * 2),
            "rope_store": (
                [
                    lambda a=a: ops.rope_store(a, LAYOUT, cos_sin, problem.cache, inputs, None, None, 1e-5)
                    for a in qkv
                ],
                2 * 6144 * 2,
            ),
        }  # fmt: skip
        for name, (calls_of, moved) in calls.items():
            one = seconds(calls_of)
            rows.append(
                {
                    "what": name,
                    "tokens": tokens,
                    "us": one * 1e6,
                    "TBps": tokens * moved / one / 1e12,
                }
            )
    return rows


def linears() -> list[Row]:
    rows: list[Row] = []
    for n, k in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)):
        copies = copies_for(n * k * 2)
        weights = [torch.randn(n, k, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        row: Row = {"what": "linear", "N": n, "K": k}
        for m in (1, 16, 64, 256):
            x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
            one = seconds([lambda w=w, x=x: F.linear(x, w) for w in weights])
            row[f"us_{m}"] = one * 1e6
            row[f"TBps_{m}"] = n * k * 2 / one / 1e12
            if n > 100000:
                one = seconds(
                    [lambda w=w, x=x: torch.mm(x, w.t(), out_dtype=torch.float32) for w in weights]
                )
                row[f"float32_out_us_{m}"] = one * 1e6
        rows.append(row)
    return rows


class DummyParameters:
    """Random weights made on the device."""

    def __init__(self, ops: TritonOps, spec: ModelSpec) -> None:
        self._ops, self._spec = ops, spec
        heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._shapes = {
            "q_proj": (heads * dim, spec.hidden_size),
            "k_proj": (kv * dim, spec.hidden_size),
            "v_proj": (kv * dim, spec.hidden_size),
            "o_proj": (spec.hidden_size, heads * dim),
            "gate_proj": (spec.intermediate_size, spec.hidden_size),
            "up_proj": (spec.intermediate_size, spec.hidden_size),
            "down_proj": (spec.hidden_size, spec.intermediate_size),
            "lm_head": (spec.vocab_size, spec.hidden_size),
            "embed_tokens": (spec.vocab_size, spec.hidden_size),
        }

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        shapes = [self._shapes[name.rsplit(".", 1)[-1]] for name in names]
        outputs = sum(shape[0] for shape in shapes)
        weight = torch.empty(outputs, shapes[0][1], device=DEVICE, dtype=self._ops.dtype)
        return self._ops.pack(weight.normal_(std=0.02))

    def norm(self, name: str) -> torch.Tensor:
        return torch.ones(self._spec.hidden_size, device=DEVICE)

    def embedding(self, name: str) -> PackedLinear:
        return self.linear(name)


class Model:
    """The 8B shape with device buffers as the runner will keep them."""

    def __init__(self, cache_tokens: int, block: int) -> None:
        self.ops = TritonOps(DTYPE, DEVICE)
        self.model = Decoder(
            LLAMA_8B, self.ops, DummyParameters(self.ops, LLAMA_8B), LlamaBlock, 131072
        )
        self.block = block
        blocks = cache_tokens // block + 1
        self.caches = tuple(self.ops.allocate_cache(blocks, block, 8, 128) for _ in range(32))
        for cache in self.caches:
            cache.keys.normal_()
            cache.values.normal_()
        self.order = torch.randperm(blocks - 1).int() + 1

    def step(self, batch: int, queries: int, length: int) -> ForwardStep:
        """Every sequence computes its last `queries` of `length` tokens; lengths vary around that by a quarter."""
        generator = random.Random(0)
        spread = 0 if queries > 1 else length // 4
        lengths = [length + generator.randint(-spread, spread) for _ in range(batch)]
        width = -(-max(lengths) // self.block)
        table = torch.zeros(batch, width, dtype=torch.int32)
        used = 0
        for seq, one in enumerate(lengths):
            count = -(-one // self.block)
            table[seq, :count] = self.order[used : used + count]
            used += count
        positions = torch.cat([torch.arange(one - queries, one) for one in lengths])
        owner = torch.arange(batch).repeat_interleave(queries)
        slots = table[owner, positions // self.block] * self.block + positions % self.block
        inputs = AttentionInputs(
            positions=positions.int().to(DEVICE),
            query_start=(torch.arange(batch + 1) * queries).int().to(DEVICE),
            kv_len=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
            block_table=table.to(DEVICE),
            slots=slots.int().to(DEVICE),
            max_query_len=queries,
            max_kv_len=max(lengths),
        )
        return ForwardStep(
            token_ids=torch.randint(
                0, 128256, (batch * queries,), dtype=torch.int32, device=DEVICE
            ),
            rows=((torch.arange(batch) + 1) * queries - 1).int().to(DEVICE),
            inputs=(inputs,) * 32,
            caches=self.caches,
        )


def whole_steps(copy_rate: float, profile: bool) -> list[Row]:
    model = Model(cache_tokens=300_000, block=64)
    weights = (LLAMA_8B.num_parameters - 128256 * 4096) * 2
    rows: list[Row] = []
    with torch.inference_mode():
        for batch, length in (
            (1, 1024),
            (8, 1024),
            (32, 1024),
            (64, 1024),
            (128, 256),
            (256, 256),
            (256, 1024),
        ):
            step = model.step(batch, 1, length)
            recording = model.ops.record(
                lambda _, step=step: model.model.forward(step), StepShape(batch, batch, batch)
            )
            assert recording is not None
            shape = StepShape(batch, batch, batch)
            eager = recording.replay(shape).clone()
            again = recording.replay(shape)
            difference = (again - eager).abs().max().item()
            kv_bytes = int(step.inputs[0].kv_len.sum()) * KV_BYTES * 32
            one = timed(lambda r=recording, s=shape: [r.replay(s) for _ in range(10)]) / 10
            floor = (weights + kv_bytes) / copy_rate
            rows.append({"what": "decode step", "batch": batch, "context": length, "ms": one * 1e3,
                         "floor_ms": floor * 1e3, "share": floor / one, "graph_minus_eager": difference})  # fmt: skip
            if profile and (batch, length) in ((1, 1024), (64, 1024), (256, 256)):
                rows += kernel_times(lambda r=recording, s=shape: r.replay(s), f"b{batch}")
        for batch, length in ((8, 2048), (1, 2048), (1, 512)):
            step = model.step(batch, length, length)
            model.model.forward(step)
            one = timed(lambda step=step: model.model.forward(step), 5)
            flops = (
                2 * (weights / 2 - 0.525e9) * batch * length
                + batch * 2 * length * length * 4096 * 32
            )
            rows.append({"what": "prefill step", "batch": batch, "tokens": length, "ms": one * 1e3,
                         "tokens_per_s": batch * length / one, "TFLOPs": flops / one / 1e12})  # fmt: skip
            if profile and batch == 8:
                rows += kernel_times(lambda step=step: model.model.forward(step), "prefill")
    return rows


def kernel_times(call: Callable[[], object], label: str) -> list[Row]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    found = sorted(trace.key_averages(), key=lambda event: -event.self_device_time_total)[:10]
    return [
        {"what": f"profile {label}", "kernel": event.key[:70], "calls": event.count / 3,
         "ms": event.self_device_time_total / 3e3}
        for event in found
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--out")
    given = parser.parse_args()
    rows = ceilings()
    copy_rate = float(rows[0]["copy_TBps"]) * 1e12
    show(rows)
    sections: dict[str, Callable[[], list[Row]]] = {
        "tune16": lambda: tune_decode(16) + tune_prefill(16),
        "tune64": lambda: tune_decode(64) + tune_prefill(64),
        "decode": lambda: decode_attention(64, with_sdpa=True),
        "decode16": lambda: decode_attention(16, with_sdpa=False),
        "prefill": lambda: prefill_attention(64, with_sdpa=True),
        "prefill16": lambda: prefill_attention(16, with_sdpa=False),
        "rows": row_wise,
        "linears": linears,
        "steps": lambda: whole_steps(copy_rate, profile=True),
    }
    for name in given.sections or sections:
        new = sections[name]()
        show(new)
        rows += new
        torch.cuda.empty_cache()
        if given.out:
            Path(given.out).write_text(json.dumps(rows, indent=1))


def show(rows: list[Row]) -> None:
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
