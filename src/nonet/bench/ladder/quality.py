"""What a lossy rung costs: a text's end under teacher forcing, beside the unmodified model, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nonet.bench.quality.report import QualityReport
from nonet.core.errors import UnavailableError

__all__ = ["measure_quality"]

# Long enough for a cache to be pruned, short enough for a rung: perplexity and KL of text, and a task's score.
TASKS = ("continuation:texts=8,prompt=448,output=48", "piqa:n=40")


def measure_quality(
    options: Mapping[str, str], reference: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, float]:
    """Figures of `settings` by name, KL against `reference` among them. UnavailableError when it cannot be measured."""
    command = [sys.executable, "-m", "nonet.cli.main", "bench", "quality"]
    command += [word for task in TASKS for word in ("--task", task)]
    command += ["--against", _words({**options, **reference})]
    command += ["--with", _words({**options, **settings})]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "quality.json")
        done = subprocess.run(
            [*command, "--json", str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise UnavailableError(lines[-1])
        report = msgspec.json.decode(file.read_bytes(), type=QualityReport)
    found: dict[str, float] = {}
    for table in report.tables:
        known = {figure.name: figure.interval.value for figure in table.rows[0].figures}
        for figure in table.rows[-1].figures:
            found[figure.name] = figure.interval.value
            if known.get(figure.name):
                found[f"{figure.name} of the reference"] = known[figure.name]
    return found


def _words(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items() if value)
