"""What the GPU benchmarks share: shapes, timing by graph replay, the device's own ceilings."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from nonet.kernels.ops import QKVLayout

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
LAYOUT = QKVLayout(32, 8, 128)
KV_BYTES = 2 * 8 * 128 * 2  # of one token in one layer
WORKING_SET = 400 << 20

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


def copies_for(kv_bytes: int) -> int:
    return max(2, min(32, WORKING_SET // kv_bytes))


def show(rows: list[Row]) -> None:
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            ),
            flush=True,
        )
