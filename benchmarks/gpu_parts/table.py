"""The figures that were kept, as one table beside the published rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_parts.job import load
from gpu_parts.published import (
    DECISIVE,
    FLOORS_S,
    HUGGING_FACE,
    MIX_TOKENS,
    TOLERANCE,
    VLLM,
    VLLM_LATENCY,
)

__all__ = ["Line", "lines", "table"]

# What is measured, unit included; ours; theirs; whether more is better.
Line = tuple[str, float, float | None, bool]


def table(out: Path, weights: str) -> str:
    """Only what was measured. A factor above 1 means that nonet is ahead, whichever way the unit points."""
    rows = [("", "nonet", "published", "factor")]
    for name, ours, theirs, is_rate in lines(out, weights):
        factor = (
            ""
            if not theirs or not ours
            else f"{(ours / theirs) if is_rate else (theirs / ours):.2f}"
        )
        rows.append((name, f"{ours:,.4g}" if ours < 1000 else f"{ours:,.0f}",
                     "" if theirs is None else f"{theirs:,.6g}", factor))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}"
        for row in rows
    ]
    return "\n".join([*_ceilings(out, weights), *text])


def lines(out: Path, weights: str) -> Iterator[Line]:
    """In the order of the parts."""
    peer = VLLM[weights]
    for name, ours, is_rate in _own(out, weights):
        yield name, ours, peer.get(name), is_rate
    yield from _latency(out, weights)
    yield from _baselines(out, weights)


def _ceilings(out: Path, weights: str) -> list[str]:
    found: Any = load(out, weights, "ceilings")
    if found is None:
        return [
            "ceilings were not measured: the published rows cannot be held against this run",
            "",
        ]
    texts = [f"{found['device_name']}; measured / published ceilings:"]
    for name, row in found["rows"].items():
        scale, unit = (1e9, "GB/s") if name in ("copy", "sum") else (1e12, "TFLOP/s")
        given = "-" if row["published"] is None else f"{row['published'] / scale:,.0f}"
        off = "" if row["deviation"] is None else f" ({row['deviation']:+.1%})"
        texts.append(f"  {name}: {row['measured'] / scale:,.1f} / {given} {unit}{off}")
    hold = "hold" if found["published_rows_hold"] else "DO NOT hold"
    return [
        *texts,
        f"the published rows {hold} here (same device, {', '.join(DECISIVE[weights])} within {TOLERANCE:.0%})",
        "",
    ]


def _own(out: Path, weights: str) -> Iterator[tuple[str, float, bool]]:
    start: Any = load(out, weights, "start")
    if start is not None:
        yield "load s", start["load_s"], False
        yield "first requests s", start["first_requests_s"], False
    memory: Any = load(out, weights, "memory") or {}
    for label in ("planned", "used"):
        if f"{label}_bytes" in memory:
            yield f"memory {label} GiB", memory[f"{label}_bytes"] / 2**30, False
    mixed: Any = load(out, weights, "mix") or {"runs": []}
    for number, run in enumerate(mixed["runs"]):
        yield f"mix output tok/s run {number}", run["output_tokens_per_s"], True
        if mixed["output_tokens"] == MIX_TOKENS:
            yield f"mix over its floor run {number}", run["duration_s"] / FLOORS_S[weights], False
        yield f"mix steps run {number}", run["steps"], False
    decode: Any = load(out, weights, "decode") or {"rows": {}}
    for batch, row in decode["rows"].items():
        yield f"decode {batch} tok/s", row["tok_per_s"], True
        yield f"decode {batch} ms/step", row["ms_per_step"], False
    if {"1", "32"} <= decode["rows"].keys():
        one, many = (decode["rows"][batch] for batch in ("1", "32"))
        steps = many["ms_per_step"] / 32 / one["ms_per_step"]
        yield "cost per token falls by, batch 1 to 32, %", 100 * (1 - steps), True
        everything = one["tok_per_s"] / many["tok_per_s"]
        yield "  with the prompts' prefill, %", 100 * (1 - everything), True
    prefill: Any = load(out, weights, "prefill") or {"rows": {}}
    for shape, row in prefill["rows"].items():
        if shape == "1x128":
            yield f"prefill {shape} ms", row["ms"], False
        else:
            yield f"prefill {shape} tok/s", row["tok_per_s"], True


def _latency(out: Path, weights: str) -> Iterator[Line]:
    found: Any = load(out, weights, "latency") or {"rows": {}}
    for rate, row in found["rows"].items():
        peer = VLLM_LATENCY.get(rate, {}) if weights == "bf16" else {}
        at = f"rate {rate}"
        yield f"{at} output tok/s", row["output_tokens_per_s"], peer.get("output tok/s"), True
        if row["num_failed"]:
            yield f"{at} failed requests", row["num_failed"], None, False
        for label, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("gap", "itl_s")):
            for at_share in ("p50", "p90", "p99", "max"):
                value, name = 1e3 * row[key][at_share], f"{label} {at_share}"
                yield f"{at} {name} ms", value, peer.get(name), False


def _baselines(out: Path, weights: str) -> Iterator[Line]:
    """Naive serving is bf16 or fp16 whatever the weights of this run; its rows may come from the other run's folder."""
    mixed: Any = load(out, weights, "mix")
    ours = mixed["runs"][-1]["output_tokens_per_s"] if mixed else None
    naive: Any = load(out, weights, "naive") or load(out, "bf16", "naive")
    if naive is not None:
        rate = naive["output_tokens_per_s"]
        yield "naive mode useful tok/s", rate, None, True
        if ours:
            yield "nonet's mix over its naive mode", ours / rate, None, True
    anchor: Any = load(out, weights, "huggingface") or load(out, "bf16", "huggingface")
    for batch, row in (anchor or {"rows": {}})["rows"].items():
        rate = row["useful_tok_per_s"]
        yield f"Hugging Face batch {batch} useful tok/s", rate, HUGGING_FACE.get(batch), True
        if ours:
            yield f"nonet's mix over Hugging Face batch {batch}", ours / rate, None, True
