"""Requests of the user: what a line may hold, what is taken from it, and what is said of one that is not understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nonet.bench.ladder.measure import Plan, latency_items
from nonet.bench.ladder.recorded import read_jsonl
from nonet.bench.metrics import Limits
from nonet.bench.workload import Workload
from nonet.core.errors import ConfigError

HELLO = {"role": "user", "content": "hello"}


def read(folder: Path, *rows: object) -> Workload:
    path = folder / "w.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return read_jsonl(path)


def test_what_a_line_asks_is_sent_and_how_it_was_sent_is_not(tmp_path: Path) -> None:
    """A log of another service names its own model, and whether the answer was streamed."""
    row = {"messages": [HELLO], "max_tokens": 7, "model": "gpt-4", "stream": False, "stream_options": None,
           "temperature": 0.5, "arrival_s": 2}  # fmt: skip
    (item,) = read(tmp_path, row).items
    assert item.messages == (HELLO,)
    assert (item.output_len, item.arrival_s) == (7, 2.0)
    assert item.extra == {"temperature": 0.5}


def test_lengths_and_times_may_be_missing(tmp_path: Path) -> None:
    rows = [
        {"messages": [HELLO]},
        {"messages": [HELLO], "max_completion_tokens": 9, "arrival_s": None},
    ]
    assert [(one.output_len, one.arrival_s) for one in read(tmp_path, *rows).items] == [
        (128, 0.0),
        (9, 0.0),
    ]


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    (item,) = read(tmp_path, {"messages": [{"role": "user", "content": parts}, called]}).items
    assert item.messages == ({"role": "user", "content": "a\nb"}, called)


def test_an_answer_with_a_shape_ends_where_its_shape_does(tmp_path: Path) -> None:
    """The server refuses to ignore the end of such an answer."""
    rows = [
        {"messages": [HELLO], "response_format": {"type": "json_object"}},
        {"messages": [HELLO], "tools": []},
    ]
    shaped, plain = read(tmp_path, *rows).items
    assert shaped.extra["ignore_eos"] is False
    assert "ignore_eos" not in plain.extra


def test_requests_are_in_order_of_arrival(tmp_path: Path) -> None:
    rows = [
        {"messages": [HELLO], "max_tokens": n, "arrival_s": at}
        for n, at in ((1, 30), (2, 10), (3, 20))
    ]
    work = read(tmp_path, *rows)
    assert [item.output_len for item in work.items] == [2, 3, 1]
    plan = Plan(
        workload=work, options={}, resolve=lambda config: pytest.fail("nothing is resolved here"), repeats=1,
        limits=Limits(), latency_requests=3,
    )  # fmt: skip
    _, due_s = latency_items(plan, 3.0, "latency")
    assert due_s == pytest.approx([0.0, 0.5, 1.0])  # their gaps, stretched to three a second


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"messages": []}', "line 2: give messages"),
        ('{"messages": [{"content": "a"}]}', "line 2: give messages"),
        ('{"messages": [{"role": "user"}]}', "the first message has no content"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "is no text"),
        ('{"messages": [{"role": "user", "content": 3}]}', "is no text"),
        (
            '{"messages": [{"role": "user", "content": "a"}], "max_tokens": "3"}',
            "max_tokens is '3'; give",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}',
            "max_tokens is 0; give",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "arrival_s": "now"}',
            "arrival_s is 'now'; give",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "arrival_s": -1}',
            "arrival_s is -1; give",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "arrival_s": NaN}',
            "arrival_s is nan; give",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({"messages": [HELLO]}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        read_jsonl(path)


def test_a_file_that_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no requests; give one JSON object a line"):
        read_jsonl(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read_jsonl(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_jsonl(tmp_path / "none.jsonl")
