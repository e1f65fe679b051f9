"""Decode by batch and prefill by shape, timed in one way for any engine; of the standard library alone.

`Seconds` takes prompts and how many tokens each is to get, and says how long all of them took together.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Seconds", "decode_rows", "prefill_rows"]

Seconds = Callable[[list[list[int]], int], float]


def decode_rows(
    seconds: Seconds, batches: Sequence[int], length: int, output_tokens: int, highest_id: int
) -> Iterator[dict[str, Any]]:
    """All rows so far, after each batch: the better of two runs; a step's time leaves the prefill out."""
    rows: dict[str, Any] = {}
    for batch in batches:
        runs = []
        for run in range(2):
            prompts = _prompts(batch, length, f"decode {batch} {run}", highest_id)
            first_s = seconds(prompts, 1)
            runs.append((seconds(prompts, output_tokens), first_s))
        all_s, first_s = min(runs)
        rows[str(batch)] = {
            "tok_per_s": batch * output_tokens / all_s,
            "ms_per_step": 1e3 * (all_s - first_s) / (output_tokens - 1),
            "first_s": first_s,
            "all_s": all_s,
        }
        yield rows


def prefill_rows(
    seconds: Seconds, shapes: Sequence[Sequence[int]], highest_id: int
) -> Iterator[dict[str, Any]]:
    """All rows so far, after each (batch, prompt length, repeats): the median."""
    rows: dict[str, Any] = {}
    for batch, length, repeats in shapes:
        for run in range(2):  # a step with prompts is captured when its size comes again
            seconds(_prompts(batch, length, f"prefill warm-up {run}", highest_id), 1)
        times = [
            seconds(_prompts(batch, length, f"prefill {run}", highest_id), 1)
            for run in range(repeats)
        ]
        middle = statistics.median(times)
        rows[f"{batch}x{length}"] = {
            "seconds": times, "ms": 1e3 * middle, "tok_per_s": batch * length / middle,
        }  # fmt: skip
        yield rows


def _prompts(batch: int, length: int, name: str, highest_id: int) -> list[list[int]]:
    rng = random.Random(name)
    return [
        [rng.randrange(highest_id // 100, highest_id) for _ in range(length)] for _ in range(batch)
    ]
