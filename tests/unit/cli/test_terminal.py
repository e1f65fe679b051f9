"""Bars are for people: on a terminal only, and never on standard output."""

from __future__ import annotations

import sys

import pytest

from nonet.cli.terminal import note, progress


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("m", "B") as show:
        show(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("unit", "fragments"), [("B", ["1.0 KiB of 2.0 KiB", "/s"]), ("layers", ["1024/2048 layers"])]
)
def test_a_bar(
    unit: str, fragments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("m", unit) as show:
        show(1024, 2048)
        show(1025, 2048)  # too soon after the last to be drawn
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\r\x1b[K")
    assert "1.0 KiB of" in err or "1024/" in err
    assert "1025" not in err
    for fragment in fragments:
        assert fragment in err


def test_a_remark_stands_on_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note("plain")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("m", "rungs") as show:
        show(1, 2)
        note("next")
        show(2, 2)
    plain, *screen = capsys.readouterr().err.split("\n")
    assert plain == "plain"
    # What stays of each line is what follows its last clearing.
    assert [line.rpartition("\x1b[K")[2] for line in screen] == ["next", ""]
