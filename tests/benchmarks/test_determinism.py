"""The benchmark of determinism at a tiny size: copies are counted, groups are mixed, and other answers would show."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks_path import FOLDER

assert FOLDER.is_dir()

import determinism  # noqa: E402


def test_all_copies_get_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv",
        ["determinism.py", "--shape", "tiny", "--copies", "30", "--largest", "5", "--prompt", "30", "--output", "6",
         "--prefill", "2", "40", "--threads", "1", "--out", str(tmp_path)],
    )  # fmt: skip
    determinism.main()
    record = json.loads((tmp_path / "tiny-auto-auto.json").read_text())
    for result in record["results"]:
        assert result["deterministic"], "the native kernels are so by themselves"
        assert (result["copies"], result["different_answers"]) == (30, 1)
        assert result["most_frequent"] == 30
        assert set(result["speed"]) == {"1", "2", "3", "5"}
    assert record["kernels"] == "native"
    assert "slowdown with the switch on" in capsys.readouterr().out


def test_an_answer_is_more_than_its_tokens() -> None:
    """Equal tokens with another last bit of a log probability are another answer."""
    seen = determinism.Seen()
    for logprob in (-1.0, -1.0, -1.0000001):
        seen.answers[((7, logprob),)] += 1
    assert seen.answers == Counter({((7, -1.0),): 2, ((7, -1.0000001),): 1})
    assert len(seen.answers) == 2
