"""Committed ladders: the page beside each JSON shows that JSON's figures, and both can still be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nonet.bench.ladder.report import steps, table
from nonet.bench.ladder.tune import cheapest, parse_targets, read_climb

ROOT = Path(__file__).parents[2] / "benchmarks"
LADDERS = sorted(ROOT.glob("*-ladder*/**/ladder.json"))


def test_there_are_some() -> None:
    assert len(LADDERS) >= 2


@pytest.mark.parametrize("file", LADDERS, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_the_page_has_the_figures_of_the_json(file: Path) -> None:
    climb = read_climb(file)
    shown = file.with_suffix(".html").read_text(encoding="utf-8")
    costs = [step.cost_per_million for step in steps(climb) if step.cost_per_million]
    assert [float(cost) for cost in re.findall(r'data-cost="([^"]+)"', shown)] == costs
    points = {float(value) for value in re.findall(r'data-value="([^"]+)"', shown)}
    seen = [one.shown_latency for one in climb.rungs if one.is_shown]
    latencies = {one.ttft_s.p99 for one in seen if one is not None and one.ttft_s and one.tpot_s}
    assert latencies <= points
    for one in climb.rungs:
        if one.runs:
            assert f'<td class="n">{one.tokens_per_s:.1f}</td>' in shown
    picture = file.with_suffix(".png")
    assert not picture.exists() or picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", LADDERS, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_it_can_still_be_read(file: Path) -> None:
    climb = read_climb(file)
    assert all(one.name in table(climb) for one in climb.rungs)
    choice = cheapest(climb, parse_targets("ttft=60,tpot=60", "p99"))
    costs = [one.cost_per_million(climb.price_per_hour) for one in climb.rungs if one.is_shown]
    assert choice.cost_per_million <= min(cost for cost in costs if cost is not None)
