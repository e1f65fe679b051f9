"""Input files of batches: what is found, where, and what is told of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nonet.server.batch.lines import InputFile, read_line
from nonet.store.batch_records import Line

URL = "/v1/completions"


def text(custom_id: str, body: Any = None) -> bytes:
    body = {"prompt": "é"} if body is None else body
    fields = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
    return json.dumps(fields, ensure_ascii=False).encode()


def read(path: Path, content: bytes, most: int = 1000) -> tuple[list[Line], InputFile]:
    path.write_bytes(content)
    given = InputFile(path, URL, most)
    lines: list[Line] = []
    while some := given.next_lines():
        lines += some
    given.close()
    return lines, given


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n \n"])
def test_lines_are_found_where_they_are(tmp_path: Path, newline: bytes, ending: bytes) -> None:
    path = tmp_path / "in"
    content = newline.join([text("a"), b"", text("ü"), text("c", {"prompt": "x" * 500})]) + ending
    lines, given = read(path, content)
    assert given.errors == []
    assert [(line.number, line.custom_id) for line in lines] == [(0, "a"), (1, "ü"), (2, "c")]
    assert json.loads(read_line(path, lines[1])) == {"prompt": "é"}
    assert json.loads(read_line(path, lines[2])) == {"prompt": "x" * 500}


def test_many_lines_come_in_parts(tmp_path: Path) -> None:
    content = b"\n".join(text(f"n{number}") for number in range(2500))
    path = tmp_path / "in"
    path.write_bytes(content)
    given = InputFile(path, URL, 1000)
    sizes = [len(given.next_lines()) for _ in range(4)]
    assert sizes == [1000, 1000, 500, 0]
    given.close()


def test_a_torn_last_line_is_told(tmp_path: Path) -> None:
    _, given = read(tmp_path / "in", text("a") + b"\n" + text("b")[:-5])
    assert [(error["line"], error["code"]) for error in given.errors] == [(2, "invalid_json_line")]


def test_a_line_that_is_too_long_ends_the_look(tmp_path: Path) -> None:
    content = b"\n".join([text("a"), text("b", {"prompt": "x" * 3000}), b"nonsense"])
    _, given = read(tmp_path / "in", content)
    assert [(error["line"], error["code"]) for error in given.errors] == [(2, "request_too_large")]


def test_a_limit_is_met_exactly(tmp_path: Path) -> None:
    size = len(text("a"))
    assert read(tmp_path / "in", text("a") + b"\n" + text("b"), most=size)[1].errors == []
    assert read(tmp_path / "in", text("a"), most=size - 1)[1].errors


def test_too_many_lines(tmp_path: Path) -> None:
    content = b"\n".join(text(f"n{number}", {}) for number in range(50_001))
    lines, given = read(tmp_path / "in", content)
    assert len(lines) == 50_000
    assert [(error["line"], error["code"]) for error in given.errors] == [
        (50_001, "too_many_requests")
    ]


def test_errors_are_bounded(tmp_path: Path) -> None:
    _, given = read(tmp_path / "in", b"x\n" * 5000)
    assert len(given.errors) == 100
