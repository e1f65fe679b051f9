"""A benchmark's figures with all that is needed to judge them, as one JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.config.machine import Machine

__all__ = ["write_record"]


def write_record(file: Path, commit: str | None, **figures: object) -> None:
    """`commit` is what ran, where there is no git to ask."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit or source_commit(),
        "device": device_facts(Machine.detect()),
        "versions": library_versions(),
        **figures,
    }
    file.write_text(json.dumps(record, indent=1) + "\n")
