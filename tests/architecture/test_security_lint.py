"""What never stands in the product: ways to run what was read as code, and SQL put together from values (S3)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "nonet").rglob("*.py"))

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "dbm",
    "code",
    "runpy",
}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "ast.literal_eval", "literal_eval",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "jinja2.Environment", "Environment",
    "Template", "jinja2.Template", "asyncio.create_subprocess_shell", "pandas.read_pickle",
}  # fmt: skip
SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|PRAGMA|ATTACH|REPLACE|WITH)\b.*\s"
)
# SQL written with names of our own in it, tables and columns; no value of a request is among them.
OWN_NAMES: dict[str, set[str]] = {
    "gateway/cache/tier.py": {"table"},
    "telemetry/ledger.py": {"', '.join([PLACES] * size)"},
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_s3_nothing_dangerous(path: Path) -> None:
    place = str(path.relative_to(ROOT / "src" / "nonet"))
    assert list(found(path.read_text(encoding="utf-8"), OWN_NAMES.get(place, set()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from marshal import loads", "import torch; torch.load(x)", "eval(x)", "exec('1')",
        "compile(x, '', 'exec')", "yaml.load(x)", "subprocess.run(x, shell=True)", "os.system(x)",
        "ast.literal_eval(x)", "db.execute(f'SELECT a FROM b WHERE c = {value}')", "'DELETE FROM t WHERE a = ' + x",
        "'UPDATE t SET a = %s' % x", "'INSERT INTO t VALUES ({})'.format(x)", "numpy.load(x, allow_pickle=True)",
        "Popen(x, shell=flag)", "np.load(x, allow_pickle=True)", "from pickle import *", "__import__('os')",
        "f'SELECT {LOWER_case} FROM t'", "jinja2.Environment()", "import dill as d",
    ],
)  # fmt: skip
def test_s3_the_lint_sees(code: str) -> None:
    assert list(found(code, set()))


@pytest.mark.parametrize(
    "code",
    [
        "re.compile(x)", "torch.compile(x)", "model.eval()", "db.execute('SELECT a FROM b WHERE c = ?', (value,))",
        "f'SELECT {COLUMNS} FROM t'", "subprocess.run([a, b])", "f'selected {x}'", "'with ' + x", "grammar.compile(x)",
    ],
)  # fmt: skip
def test_s3_the_lint_lets_pass(code: str) -> None:
    assert list(found(code, set())) == []


def found(code: str, own_names: set[str]) -> Iterator[str]:
    """A line for each thing that must not be there."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names) if {one.name.partition(".")[0] for one in names} & MODULES:
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call():
                yield from _bad_call(node)
            case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if SQL.match(text + " "):
                yield from _foreign(node, own_names)
            case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod() | ast.Add()):
                if SQL.match(text):
                    yield f"line {node.lineno}: SQL of parts: {ast.unparse(node)}"


def _bad_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS:
        yield f"line {node.lineno}: {name}"
    for keyword in node.keywords:
        is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
        if keyword.arg in ("shell", "allow_pickle") and not is_off:
            yield f"line {node.lineno}: {name}({keyword.arg}=...)"
    match node.func:
        case ast.Attribute(value=ast.Constant(value=str(text)), attr="format") if SQL.match(text):
            yield f"line {node.lineno}: SQL by format: {text}"


def _foreign(node: ast.JoinedStr, own_names: set[str]) -> Iterator[str]:
    for value in node.values:
        if isinstance(value, ast.FormattedValue):
            name = ast.unparse(value.value)
            if not name.isupper() and name not in own_names:
                yield f"line {node.lineno}: {name} in SQL"


def test_every_test_of_the_security_page_exists() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "security.md").read_text().splitlines()
        if line[:3] == "| S"
    ]
    items = [row.split()[1] for row in rows]
    assert items == ["S1", "S2", "S3", "S4", "S5", "S7", "S9", "S10", "S12", "S13"]
    for row in rows:
        file = ""
        named = re.findall(r"`([^`]*)::(test_\w+)`", row)
        assert named, row
        for given, test in named:
            file = given or file
            text = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", text, re.M), (file, test)
