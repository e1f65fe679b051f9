"""The page in a browser: its figures are the JSON's, its bars as long as they should be, and it asks nobody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.browser import Browser, browser
from tests.unit.bench.ladder.made_up import a_climb

from nonet.bench.ladder.html import page
from nonet.bench.ladder.picture import draw
from nonet.bench.ladder.report import steps
from nonet.bench.ladder.result import Climb
from nonet.core.errors import UnavailableError

__all__ = ["browser"]  # the fixture

# What a reader sees: texts of the tables, lengths of the bars on the screen, and whatever the page fetched.
READ = """
const rows = id => [...document.querySelectorAll(`#${id} tbody tr`)].map(
  row => [...row.cells].map(cell => cell.innerText));
const marks = (name, field) => [...document.querySelectorAll(name)].map(mark => ({
  rung: mark.dataset.rung, figure: mark.dataset.figure, value: Number(mark.dataset[field]),
  width: mark.getBoundingClientRect().width, y: mark.getBoundingClientRect().y}));
return {
  heads: [...document.querySelectorAll("#rungs thead th")].map(cell => cell.innerText),
  rungs: rows("rungs"), without: rows("without"),
  bars: marks("rect.cost", "cost"), points: marks("circle", "value"),
  fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  tier: document.querySelector("#batch-tier").innerText,
  scripts: document.scripts.length};
"""


@pytest.fixture(scope="module")
def climbed() -> Climb:
    """As it is read back from the JSON."""
    return msgspec.json.decode(msgspec.json.encode(a_climb()), type=Climb)


@pytest.fixture(scope="module")
def seen(climbed: Climb, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("page") / "ladder.html"
    file.write_text(page(climbed), encoding="utf-8")
    browser.open(file.as_uri())
    return browser.run(READ)


def test_every_figure_of_the_table(seen: Any, climbed: Climb) -> None:
    rows = {row[0]: dict(zip(seen["heads"], row, strict=True)) for row in seen["rungs"]}
    assert list(rows) == [one.name for one in (*climbed.anchors, *climbed.rungs)]
    for step in steps(climbed):
        one, row = step.measured, rows[step.measured.name]
        if not one.runs:
            assert row["tokens/s"] == "-"
            assert row["what it did"] == (one.error or one.skipped)
            continue
        latency = one.latency
        assert latency is not None
        assert latency.ttft_s is not None
        assert latency.tpot_s is not None
        assert row["tokens/s"] == f"{one.tokens_per_s:.1f}"
        assert row["requests/s"] == f"{one.requests_per_s:.3f}"
        assert row["cost per M"] == f"{3.6 / 3600 / one.tokens_per_s * 1e6:.4f}"
        assert row["TTFT p50 s"] == f"{latency.ttft_s.p50:.3f}"
        assert row["TTFT p99 s"] == f"{latency.ttft_s.p99:.3f}"
        assert row["TPOT p50 ms"] == f"{1e3 * latency.tpot_s.p50:.1f}"
        assert row["TPOT p99 ms"] == f"{1e3 * latency.tpot_s.p99:.1f}"
        assert row["goodput/s"] == f"{latency.goodput_rps:.2f}"
        assert row["peak memory"] == "3.0 GiB"
        assert row["KV tokens"] == "4096"
        assert row["x base"] == f"{one.tokens_per_s / 30:.2f}"
        assert row["x naive"] == f"{one.tokens_per_s / 21:.2f}"
    assert rows["good"]["x below"] == f"{61 / 21:.2f}"
    assert rows["nothing"]["x below"] == "none shown"
    assert rows["lossy"]["quality"] == "not measured"
    assert [row[:3] for row in seen["without"]] == [
        ["without good", "40.0", "the full stack was not measured"],
        ["without nothing", "90.0", "the full stack was not measured"],
    ]


def test_bars_are_as_long_as_costs(seen: Any, climbed: Climb) -> None:
    costs = {
        step.measured.name: step.cost_per_million
        for step in steps(climbed)
        if step.cost_per_million
    }
    assert {bar["rung"]: bar["value"] for bar in seen["bars"]} == costs
    longest = max(seen["bars"], key=lambda bar: bar["value"])
    for bar in seen["bars"]:
        share = bar["width"] / longest["width"]
        assert share == pytest.approx(bar["value"] / longest["value"], rel=0.01)


def test_the_batch_tier_has_its_sentence(seen: Any) -> None:
    assert seen["tier"] == (
        "Batch tier, beside online traffic at 2.00 requests/s: a million output tokens cost 25.0000 instead of "
        "100.0000 (4.00x), online TTFT p50/p99 0.200/0.800 s instead of 0.100/0.400 s, TPOT 0.200/0.800 s instead of "
        "0.100/0.400 s."
    )


def test_curves_hold_the_latencies(seen: Any, climbed: Climb) -> None:
    points = {(point["rung"], point["figure"]): point for point in seen["points"]}
    for one in climbed.rungs:
        if one.runs:
            assert one.latency is not None
            assert one.latency.ttft_s is not None
            assert points[one.name, "ttft_s p99"]["value"] == one.latency.ttft_s.p99
    assert (
        points["naive", "ttft_s p50"]["y"] < points["good", "ttft_s p50"]["y"]
    )  # slower is higher


def test_it_asks_nobody_and_runs_nothing(seen: Any, climbed: Climb) -> None:
    assert seen["fetched"] == []
    assert "Goodput: requests per second within TTFT 5 s, TPOT 0.2 s." in page(climbed)
    assert seen["scripts"] == 0
    text = page(climbed)
    assert not re.search(r"<script|\bsrc=|href=|url\(|@import", text)
    assert "c &lt;i&gt;" in text


def test_the_picture(tmp_path: Path, climbed: Climb, browser: Browser) -> None:
    file = tmp_path / "ladder.png"
    draw(climbed, file)
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(head[16:20], "big") >= 1040


def test_without_a_browser_it_says_so(
    tmp_path: Path, climbed: Climb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no Chromium was found"):
        draw(climbed, tmp_path / "ladder.png")
