"""The core works with techniques it does not know: their names stand in their own folder and in the catalogue alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nonet.core.catalogue import Catalogue
from nonet.grammar import GRAMMARS
from nonet.kv.format import KV_FORMATS
from nonet.kv.prune import PRUNERS
from nonet.quant.checkpoints import CHECKPOINT_FORMATS
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.sampling.processors import PROCESSORS, TRUNCATIONS
from nonet.scheduler.batching import BATCHINGS
from nonet.scheduler.policy import POLICIES
from nonet.speculate import DRAFT_LENGTHS, PROPOSERS

SOURCE = Path(__file__).parents[2] / "src" / "nonet"
# Scheduler, runner, engine loop and KV bookkeeping, and what the forward pass is made of.
CORE = ("engine", "kv", "layers", "models", "runner", "sampling", "scheduler")
# A catalogue, and the folder of its techniques.
SEAMS = [
    (BATCHINGS, "scheduler/batching"),
    (CHECKPOINT_FORMATS, "quant/checkpoints"),
    (DRAFT_LENGTHS, "speculate"),
    (GRAMMARS, "grammar"),
    (KV_FORMATS, "kv/format"),
    (POLICIES, "scheduler/policy"),
    (PROCESSORS, "sampling/processors"),
    (PROPOSERS, "speculate"),
    (PRUNERS, "kv/prune"),
    (TRUNCATIONS, "sampling/processors"),
    (WEIGHT_FORMATS, "quant/formats"),
]
HOMES = {home for _, home in SEAMS}


def mentions(table: Catalogue, folder: Path) -> list[str]:
    """Files of the core, techniques' own folders left out, that name one of the table's."""
    names = set(table.names())
    classes = {table.load(name).__name__ for name in names}
    return [
        str(path.relative_to(folder))
        for part in CORE
        for path in sorted((folder / part).rglob("*.py"))
        if not any(path.is_relative_to(folder / home) for home in HOMES)
        and _is_named(ast.parse(path.read_text()), names, classes)
    ]


def _is_named(tree: ast.Module, names: set[str], classes: set[str]) -> bool:
    """Whether a class is used, or a technique's module or spec string; docstrings and comments may say anything."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose:
                found = text.partition(":")[0] in names
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found = name in classes
            case ast.ImportFrom(module=module, names=aliases):
                imported = {alias.name for alias in aliases}
                found = (module or "").rpartition(".")[2] in names or bool(imported & classes)
            case ast.Import(names=aliases):
                found = any(alias.name.rpartition(".")[2] in names for alias in aliases)
            case _:
                found = False
        if found:
            return True
    return False


@pytest.mark.parametrize(("table", "home"), SEAMS, ids=[table.kind for table, _ in SEAMS])
def test_the_core_names_no_technique(table: Catalogue, home: str) -> None:
    assert (SOURCE / home).is_dir()
    assert mentions(table, SOURCE) == []


@pytest.mark.parametrize(
    "line",
    [
        "if name == 'snapkv': pass",
        'spec = "recent:budget=3"',
        "SnapKV(config)",
        "from nonet.kv.prune.snapkv import anything",
        "import nonet.kv.prune.recent",
        "pruner.SnapKV",
    ],
)
@pytest.mark.parametrize(
    "place", ["scheduler/own.py", "runner/own.py", "kv/own.py", "engine/own.py"]
)
def test_a_name_in_the_core_is_seen(tmp_path: Path, line: str, place: str) -> None:
    for where in (place, "kv/prune/their.py", "server/app.py"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).write_text(line)
    assert mentions(PRUNERS, tmp_path) == [place]


def test_prose_may_name_a_technique(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "cache.py").write_text(
        '"""As snapkv does."""\n# snapkv\nkept = "as snapkv does"\n'
    )
    assert mentions(PRUNERS, tmp_path) == []
