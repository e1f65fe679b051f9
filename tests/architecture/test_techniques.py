"""The core works with techniques it does not know: their names stand in their own folder and in the catalogue alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nonet.core.catalogue import Catalogue
from nonet.kv.prune import PRUNERS

SOURCE = Path(__file__).parents[2] / "src" / "nonet"
CORE = ("engine", "kv", "layers", "models", "runner", "sampling", "scheduler")
# A catalogue, and the folder of its techniques.
SEAMS = [(PRUNERS, "kv/prune")]


def mentions(table: Catalogue, home: str, folder: Path) -> list[str]:
    """Files of the core that name a technique of the table, as a string or by its class."""
    names = [re.escape(name) for name in table.names()]
    classes = [table.load(name).__name__ for name in table.names()]
    pattern = re.compile(rf"[\"']({'|'.join(names)})[\"':]|\b({'|'.join(classes)})\b")
    return [
        str(path.relative_to(folder))
        for part in CORE
        for path in sorted((folder / part).rglob("*.py"))
        if not path.is_relative_to(folder / home) and pattern.search(path.read_text())
    ]


@pytest.mark.parametrize(("table", "home"), SEAMS, ids=[home for _, home in SEAMS])
def test_the_core_names_no_technique(table: Catalogue, home: str) -> None:
    assert mentions(table, home, SOURCE) == []


@pytest.mark.parametrize(
    "line", ["if name == 'snapkv':", 'spec = "recent:budget=3"', "SnapKV(config)"]
)
def test_a_name_in_the_core_is_seen(tmp_path: Path, line: str) -> None:
    for place in ("scheduler/planner.py", "kv/prune/own.py", "server/app.py"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(line)
    assert mentions(PRUNERS, "kv/prune", tmp_path) == ["scheduler/planner.py"]
