"""The figures that were kept, as one table beside the published rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_parts.job import load
from gpu_parts.published import (
    DECISIVE,
    ENTRY_BYTES,
    HUGGING_FACE,
    MIX_ENTRIES,
    MIX_FLOPS,
    MIX_TOKENS,
    TOLERANCE,
    VLLM,
    VLLM_LATENCY,
)

__all__ = ["Line", "lines", "table"]

# What is measured, unit included; ours; theirs; whether more is better.
Line = tuple[str, float, float | None, bool]


def table(out: Path, weights: str) -> str:
    """Only what was measured. A factor above 1 means that nonet is ahead, whichever way the unit points.

    Where vLLM ran too, its figure and the factor over it come after those of the published row.
    """
    here = _vllm(out, weights)
    has_vllm = bool(here)
    rows = [("", "nonet", "published", "factor", *(("vLLM here", "factor") if has_vllm else ()))]
    for name, ours, theirs, is_rate in lines(out, weights):
        row = (name, _figure(ours), *_beside(ours, theirs, is_rate))
        rows.append((*row, *_beside(ours, here.pop(name, None), is_rate)) if has_vllm else row)
    rows += [(name, "", "", "", *_beside(0.0, theirs, True)) for name, theirs in here.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = []
    for name, *figures in rows:
        padded = [f"{one:>{width}}" for one, width in zip(figures, widths[1:], strict=True)]
        text.append("  ".join([f"{name:<{widths[0]}}", *padded]))
    return "\n".join([*_ceilings(out, weights), *text])


def _beside(ours: float, theirs: float | None, is_rate: bool) -> tuple[str, str]:
    """Their figure, and ours over it."""
    if not theirs or not ours:
        return ("" if theirs is None else f"{theirs:,.6g}"), ""
    return f"{theirs:,.6g}", f"{(ours / theirs) if is_rate else (theirs / ours):.2f}"


def _figure(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _vllm(out: Path, weights: str) -> dict[str, float]:
    """By the names of our lines, what vLLM did in this folder."""
    parts: dict[str, Any] = load(out, weights, "vllm") or {}
    found = {name: value for name, value, _ in _own(parts.get)}
    for name, value in _times(load(out, weights, "vllm-latency") or {"rows": {}}):
        found[name] = value
    return found


def lines(out: Path, weights: str) -> Iterator[Line]:
    """In the order of the parts."""
    peer = VLLM[weights]
    for name, ours, is_rate in _own(lambda part: load(out, weights, part)):
        yield name, ours, peer.get(name), is_rate
    yield from _over_floor(out, weights)
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


def _own(figures_of: Callable[[str], Any]) -> Iterator[tuple[str, float, bool]]:
    """Lines of an engine's parts, each as `figures_of` gives it; None when it has not run."""
    start: Any = figures_of("start")
    if start is not None:
        yield "load s", start["load_s"], False
        yield "first requests s", start["first_requests_s"], False
    memory: Any = figures_of("memory") or {}
    for label in ("planned", "used"):
        if f"{label}_bytes" in memory:
            yield f"memory {label} GiB", memory[f"{label}_bytes"] / 2**30, False
    mixed: Any = figures_of("mix") or {"runs": []}
    for number, run in enumerate(mixed["runs"]):
        yield f"mix output tok/s run {number}", run["output_tokens_per_s"], True
        if "steps" in run:
            yield f"mix steps run {number}", run["steps"], False
    decode: Any = figures_of("decode") or {"rows": {}}
    for batch, row in decode["rows"].items():
        yield f"decode {batch} tok/s", row["tok_per_s"], True
        yield f"decode {batch} ms/step", row["ms_per_step"], False
    if {"1", "32"} <= decode["rows"].keys():
        one, many = (decode["rows"][batch] for batch in ("1", "32"))
        steps = many["ms_per_step"] / 32 / one["ms_per_step"]
        yield "cost per token falls by, batch 1 to 32, %", 100 * (1 - steps), True
        everything = one["tok_per_s"] / many["tok_per_s"]
        yield "  with the prompts' prefill, %", 100 * (1 - everything), True
    prefill: Any = figures_of("prefill") or {"rows": {}}
    for shape, row in prefill["rows"].items():
        if shape == "1x128":
            yield f"prefill {shape} ms", row["ms"], False
        else:
            yield f"prefill {shape} tok/s", row["tok_per_s"], True


def _over_floor(out: Path, weights: str) -> Iterator[Line]:
    """The mix's time as a multiple of what the device's ceilings allow: products and KV reads one after another."""
    mixed: Any = load(out, weights, "mix")
    found: Any = load(out, weights, "ceilings")
    if mixed is None or found is None or mixed["output_tokens"] != MIX_TOKENS:
        return
    # Of FP8 products, those with a scale for each row, as nonet makes them.
    product = "bfloat16" if weights == "bf16" else "float8_rowwise"
    rate = {name: row["measured"] for name, row in found["rows"].items()}
    if product not in rate:  # the device has no such product
        return
    floor_s = MIX_FLOPS / rate[product] + MIX_ENTRIES * ENTRY_BYTES[weights] / rate["copy"]
    yield f"mix floor s, by {product}", floor_s, None, False
    for number, run in enumerate(mixed["runs"]):
        yield f"mix over its floor run {number}", run["duration_s"] / floor_s, None, False


def _latency(out: Path, weights: str) -> Iterator[Line]:
    found: Any = load(out, weights, "latency") or {"rows": {}}
    peer = {
        f"rate {rate} {name}" + ("" if name == "output tok/s" else " ms"): value
        for rate, row in VLLM_LATENCY.items()
        for name, value in row.items()
        if weights == "bf16"
    }
    for name, value in _times(found):
        yield name, value, peer.get(name), name.endswith("tok/s")


def _times(found: Any) -> Iterator[tuple[str, float]]:
    for rate, row in found["rows"].items():
        at = f"rate {rate}"
        yield f"{at} output tok/s", row["output_tokens_per_s"]
        if row["num_failed"]:
            yield f"{at} failed requests", row["num_failed"]
        for label, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("gap", "itl_s")):
            for at_share in ("p50", "p90", "p99", "max"):
                yield f"{at} {label} {at_share} ms", 1e3 * row[key][at_share]


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
