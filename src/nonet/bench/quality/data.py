"""Data sets as they lie under NONET_DATA, samples of them by seed, and digests of what was used."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nonet.bench.workload import data_folder
from nonet.core.errors import ConfigError

__all__ = ["digest", "read_lines", "read_text", "sample"]

Item = TypeVar("Item")


def read_text(environ: Mapping[str, str], name: str) -> str:
    """A file of the data folder, such as `wikitext2/valid.txt`."""
    folder, _, _ = name.partition("/")
    path = data_folder(environ, folder) / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; NONET_DATA must hold {name}"
        ) from None


def read_lines(environ: Mapping[str, str], name: str) -> list[dict[str, object]]:
    """The objects of a file with one JSON object a line."""
    rows = [json.loads(line) for line in read_text(environ, name).splitlines() if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{Path(name)} does not hold one JSON object a line")
    return rows


def sample(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """`count` of the items in their order, by seed; all of them where there are no more."""
    if count < 1:
        raise ConfigError(f"{count} items were asked for; give at least 1")
    if count >= len(items):
        return list(items)
    chosen = random.Random(seed).sample(range(len(items)), count)
    return [items[index] for index in sorted(chosen)]


def digest(items: object) -> str:
    """SHA-256 of the items as JSON."""
    text = json.dumps(items, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
