"""The result as one JSON file and one Markdown table per model."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peers.cases import Case, Job, Turn
from peers.run import Row

__all__ = ["commit", "machine", "markdown", "write"]


def machine(cores: Sequence[int]) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = Path("/proc/cpuinfo").read_text()
    memory = Path("/proc/meminfo").read_text()
    flags = set(_first(cpu, "flags").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
    return {
        "cpu": _first(cpu, "model name"),
        "cores_used": list(cores),
        "cores": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
        "memory_kb": int(_first(memory, "MemTotal").split()[0]),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def write(folder: Path, job: Job, rows: Sequence[Row], on: dict[str, Any]) -> Path:
    """results.json and results.md in `folder`; called after every round: an interrupted run keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": on,
        "job": {k: v for k, v in dataclasses.asdict(job).items() if k not in ("model_path", "weights")},
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    table = folder / "results.md"
    table.write_text(markdown(job, rows, on))
    return table


def markdown(job: Job, rows: Sequence[Row], on: dict[str, Any]) -> str:
    """Tokens per second; in batches the total over the whole run, and in parentheses the decode rate."""
    lines = [
        f"{on['cpu']}, {job.threads} threads ({', '.join(on['flags'])}). Tokens per second, medians of up to "
        f"{job.repeats} rounds in which the engines took turns, random prompts (seed {job.seed}), EOS ignored. "
        "Batches: output tokens over the whole run, prefill included; in parentheses after prefill.",
    ]
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        lines += ["", f"## {model}", "", *_table(job, of_model, _cell)]
        for base in of_model:
            if base.peer == "nonet" and base.turns:
                against = [row for row in of_model if row.peer != "nonet" and row.turns]
                title = f"nonet ({base.weights}) over each: median of the rounds' ratios [smallest, largest]."
                lines += ["", title, ""]
                lines += _table(job, against, partial(_ratio, base))
    failed = [row for row in rows if row.error]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {row.peer}, {row.model}, {row.weights}: {_reason(row)}" for row in failed]
    busy = max((share for row in rows for share in row.busy_before), default=0.0)
    lines += ["", f"Busiest moment just before a turn: {busy:.0%} of the machine.", ""]
    return "\n".join(lines)


def _table(job: Job, rows: Sequence[Row], cell: Callable[[Case, Row], str]) -> list[str]:
    lines = ["| engine | weights | " + " | ".join(_titles(job)) + " |"]
    lines.append("|---|---|" + "---|" * len(job.cases))
    for row in rows:
        name = f"{row.peer} {row.version}" if row.version else row.peer
        cells = " | ".join(cell(case, row) for case in job.cases)
        lines.append(f"| {name} | {row.weights} | {cells} |")
    return lines


def _titles(job: Job) -> list[str]:
    return [
        f"prefill {case.prompt_tokens}"
        if case.output_tokens == 1
        else f"batch {case.num_prompts} ({case.prompt_tokens} + {case.output_tokens})"
        for case in job.cases
    ]


def _cell(case: Case, row: Row) -> str:
    turns = row.turns.get(case.name, [])
    prefill, decode, total = (
        _number(_median([rate for turn in turns if (rate := measure(turn, case)) is not None]))
        for measure in (Turn.prefill, Turn.decode, Turn.total)
    )
    if case.output_tokens == 1:
        return prefill
    return decode if case.num_prompts == 1 else f"{total} ({decode})"


def _ratio(base: Row, case: Case, row: Row) -> str:
    """What counts in this case (prefill, decode of one, or total), ours over theirs of the same round."""
    measure = Turn.total
    if case.num_prompts == 1:
        measure = Turn.prefill if case.output_tokens == 1 else Turn.decode
    ratios = []
    for ours, theirs in zip(
        base.turns.get(case.name, []), row.turns.get(case.name, []), strict=False
    ):
        our_rate, their_rate = measure(ours, case), measure(theirs, case)
        if our_rate and their_rate:
            ratios.append(our_rate / their_rate)
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _median(rates: list[float]) -> float | None:
    return statistics.median(rates) if rates else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _reason(row: Row) -> str:
    """The last line of the error that says something."""
    lines = [line.strip() for line in (row.error or "").splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "failed" in line]
    return (named or lines or ["no message"])[-1][:300]


def _first(text: str, key: str) -> str:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def commit() -> str:
    """The checkout that measured, with `dirty` when it was changed."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()
