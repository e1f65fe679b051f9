"""What a device did, kernel by kernel, from a profiler's trace: times, counts, gaps, and what each kind should take."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from nonet.bench.roofline.work import ModelWork
from nonet.config.memory import DTYPE_BYTES

__all__ = ["Floor", "Kernel", "Span", "by_kernel", "floors", "idle_share", "kind_of", "record"]

# Categories of the trace that occupy the device; on a CPU the operations stand for kernels.
ON_DEVICE = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}

# First match wins. Names of our own kernels, then those of cuBLAS, CUTLASS and torch.
KINDS = (
    ("attention", r"attend|attention|flash|fmha"),
    ("rounding", r"quanti[sz]e|scale_product"),
    ("products", r"linear|gemm|nvjet|cutlass|xmma|cublas|split_?k|scaled_mm|groupwise|int[48]|aten::(mm|addmm|matmul)"),
    ("rope and cache", r"rope"),
    ("norms", r"norm"),
    ("gate", r"gated|silu|gelu"),
    ("sampling", r"argmax|softmax|sample|topk|sort|reduce"),
    ("copies", r"memcpy|memset|copy"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work; microseconds."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """All work of one name, per step."""

    name: str
    kind: str
    count: float
    us: float
    share: float  # of the time that the device was busy


@dataclass(frozen=True, slots=True)
class Floor:
    """What a kind of kernel must do in a step, and how long that takes at the measured rates."""

    kind: str
    num_bytes: float
    flops: float
    floor_us: float


def record(run: Callable[[], object], device: str) -> list[Span]:
    """What `run` made the device do, in order of start; `run` waits for the device itself."""
    kinds = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    spans = [
        Span(event["name"], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ON_DEVICE[device]
    ]
    return sorted(spans, key=lambda span: span.start_us)


def by_kernel(spans: Sequence[Span], steps: int) -> list[Kernel]:
    """Longest first."""
    totals: dict[str, tuple[int, float]] = {}
    for span in spans:
        count, us = totals.get(span.name, (0, 0.0))
        totals[span.name] = (count + 1, us + span.end_us - span.start_us)
    whole = sum(us for _, us in totals.values()) or 1.0
    kernels = [
        Kernel(name, kind_of(name), count / steps, us / steps, us / whole)
        for name, (count, us) in totals.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.us)


def idle_share(spans: Sequence[Span], longer_than_us: float = 0.0) -> float:
    """Of the time from the first start to the last end, the share in gaps of more than that, when nothing ran."""
    if not spans:
        return 0.0
    end, idle = spans[0].end_us, 0.0
    for span in spans[1:]:
        gap = span.start_us - end
        if gap > longer_than_us:
            idle += gap
        end = max(end, span.end_us)
    return idle / (end - spans[0].start_us)


def floors(
    work: ModelWork,
    batch: int,
    queries: int,
    context: float,
    bytes_per_s: float,
    flops_per_s: float,
) -> list[Floor]:
    """Of a step in which each of `batch` sequences computes its last `queries` of `context` tokens, where known."""
    spec, tokens, each = work.spec, batch * queries, DTYPE_BYTES[work.resolved.dtype]
    whole = work.decode(batch, context) if queries == 1 else work.prefill(batch, queries)
    products = work.products(tokens, batch)
    layers = spec.num_layers - 1  # after the last one's attention only sampled tokens go on
    kv = spec.num_layers * work.kv_bytes_per_layer
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    parts = {
        "products": (work.weight_bytes, products),
        "attention": (batch * context * kv, whole.flops - products),
        "norms": (
            ((2 * layers + 1) * tokens + 2 * batch) * 4 * spec.hidden_size * each,
            0.0,
        ),
        "gate": ((layers * tokens + batch) * 3 * spec.intermediate_size * each, 0.0),
        "rope and cache": (tokens * (spec.num_layers * heads * each + kv), 0.0),
    }
    return [
        Floor(kind, moved, flops, 1e6 * max(moved / bytes_per_s, flops / flops_per_s))
        for kind, (moved, flops) in parts.items()
    ]


def kind_of(name: str) -> str:
    """The kind of a kernel by its name; "other" where none is recognised."""
    low = name.lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, low)), "other")
