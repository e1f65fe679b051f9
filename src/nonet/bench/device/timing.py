"""Seconds of device work: replays of one CUDA graph between events, or calls between clock readings on a CPU.

A graph takes the launches of the host out of the figure. Calls rotate over inputs that the caller made larger than the
caches, see `copies_for`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

__all__ = ["REPEATS", "copies_for", "median_seconds", "wait"]

REPEATS = 7

# What the inputs of one measurement take together at least: several times the L2 of a GPU, or the caches of a CPU.
WORKING_SET_BYTES = {"cuda": 400 << 20, "cpu": 64 << 20}
MOST_COPIES = 32


def median_seconds(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = REPEATS,
    is_recorded: bool = True,
) -> float:
    """Seconds of one call: the median over `repeats` passes through all calls, after two that warm up.

    `is_recorded` False times the calls as the host launches them, for work that a graph cannot hold.
    """
    for call in calls[:2]:
        call()
    wait(device)
    if device.type != "cuda":
        return statistics.median(_by_clock(calls) for _ in range(repeats)) / len(calls)
    if not is_recorded:
        return statistics.median(_by_events(lambda: _all(calls)) for _ in range(repeats)) / len(
            calls
        )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _all(calls)
    graph.replay()
    return statistics.median(_by_events(graph.replay) for _ in range(repeats)) / len(calls)


def copies_for(num_bytes: int, device: torch.device) -> int:
    """How many sets of inputs of that size make a working set that no cache holds; at least 2."""
    return max(2, min(MOST_COPIES, -(-WORKING_SET_BYTES[device.type] // max(1, num_bytes))))


def wait(device: torch.device) -> None:
    """Until all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _by_clock(calls: Sequence[Callable[[], object]]) -> float:
    began = time.perf_counter()
    _all(calls)
    return time.perf_counter() - began


def _by_events(run: Callable[[], object]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1e3
