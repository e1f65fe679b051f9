"""`nonet tune`: the cheapest measured configuration that meets latency targets, as a file for `nonet serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nonet.bench.ladder.tune import as_toml, cheapest, parse_targets, read_climb
from nonet.cli.terminal import note

__all__ = ["command"]


def command(
    *,
    slo: Annotated[
        str, Parameter(help="seconds that latencies may take, as in ttft=0.5,tpot=0.05")
    ],
    quantile: Annotated[str, Parameter(help="of the requests: p50, p90 or p99")] = "p99",
    results: Annotated[Path, Parameter(help="what nonet ladder wrote")] = Path(
        "ladder/ladder.json"
    ),
    lossless: Annotated[
        bool, Parameter(help="only configurations that change no answer", negative=())
    ] = False,
    out: Annotated[Path, Parameter(help="file to write")] = Path("nonet.toml"),
) -> int:
    """Choose from a ladder's measurements and write the configuration."""
    climb = read_climb(results)
    targets = parse_targets(slo, quantile)
    choice = cheapest(climb, targets, lossless=lossless)
    text = as_toml(climb, choice, climb.options, targets)
    out.write_text(text, encoding="utf-8")
    print(text, end="")
    note(f"written: {out}; serve it with: nonet serve --config {out}")
    return 0
