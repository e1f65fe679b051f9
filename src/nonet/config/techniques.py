"""The techniques that a configuration can switch, each with the options that turn it on and off.

The ladder climbs this list, the pairwise test crosses it with itself, and the matrix of docs/compatibility.md is made
from it, so a technique that is entered here is measured, tested and documented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.config.compat import Conflict, find_conflict

__all__ = ["TECHNIQUES", "Technique", "conflict_between", "matrix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """`on` and `off` give the same options. `is_rung` is False for what brings no speed by itself."""

    name: str
    on: Mapping[str, str]
    off: Mapping[str, str]
    is_lossy: bool = False
    is_rung: bool = True
    device: str | None = None  # None: any


TECHNIQUES = (
    Technique(
        name="continuous batching",
        on={"batching": "continuous"},
        off={"batching": "static:size=32"},
    ),
    Technique(
        name="paged KV", on={"kv_reservation": "paged"}, off={"kv_reservation": "worst_case"}
    ),
    Technique(
        name="native kernels",
        on={"kernels": "native"},
        off={"kernels": "reference"},
        device="cpu",
    ),
    Technique(
        name="Triton kernels",
        on={"kernels": "triton"},
        off={"kernels": "reference"},
        device="cuda",
    ),
    Technique(name="recorded forward pass", on={"recording": "true"}, off={"recording": "false"}),
    Technique(
        name="chunked prefill", on={"chunked_prefill": "true"}, off={"chunked_prefill": "false"}
    ),
    Technique(name="prefix cache", on={"prefix_cache": "true"}, off={"prefix_cache": "false"}),
    Technique(name="deadlines", on={"policy": "slo"}, off={"policy": "fcfs"}, is_rung=False),
    Technique(
        name="weights as in the file",
        on={"weight_format": "native"},
        off={"weight_format": "dense"},
        is_lossy=True,
        device="cpu",
    ),
    Technique(
        name="FP8 weights",
        on={"weight_format": "fp8"},
        off={"weight_format": "dense"},
        is_lossy=True,
        device="cuda",
    ),
    Technique(
        name="INT8 weights",
        on={"weight_format": "int8"},
        off={"weight_format": "dense"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(
        name="INT4 weights",
        on={"weight_format": "int4"},
        off={"weight_format": "dense"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(name="prompt lookup", on={"speculate": "prompt_lookup"}, off={"speculate": "none"}),
    Technique(name="INT8 KV", on={"kv_format": "int8"}, off={"kv_format": "auto"}, is_lossy=True),
    Technique(
        name="SnapKV",
        on={"kv_prune": "snapkv:window=16,budget=256"},
        off={"kv_prune": "none"},
        is_lossy=True,
    ),
    Technique(name="exact cache", on={"gateway": "exact_cache"}, off={"gateway": ""}),
)


def conflict_between(first: Technique, second: Technique) -> Conflict | None:
    """Why the two cannot be on together; None when they can. Options that both set must agree."""
    for name in first.on.keys() & second.on.keys():
        if first.on[name] != second.on[name]:
            values = f"{first.on[name]} and {second.on[name]}"
            return Conflict(
                (name, first.on[name]),
                (name, second.on[name]),
                f"{name} has one value, {values} are two",
                "choose one",
            )
    both = {name: value.partition(":")[0] for name, value in {**first.on, **second.on}.items()}
    return find_conflict(both)


def matrix() -> str:
    """The compatibility page: one line for each pair that excludes each other, and the table of all."""
    names = [technique.name for technique in TECHNIQUES]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    reasons = []
    for row, first in enumerate(TECHNIQUES):
        cells = []
        for column, second in enumerate(TECHNIQUES):
            conflict = conflict_between(first, second)
            cells.append("" if column == row else "no" if conflict else "yes")
            if conflict and column > row:
                reasons.append(
                    f"- {first.name} and {second.name}: {conflict.reason}; {conflict.remedy}."
                )
        lines.append(f"| {first.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Pairs that exclude each other:", "", *reasons, ""])
