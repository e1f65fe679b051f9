"""The ladder's rules, on measurements made up here: what counts as a saving, what is kept, what is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from nonet.bench.ladder.climb import climb
from nonet.bench.ladder.html import page
from nonet.bench.ladder.measure import Plan
from nonet.bench.ladder.report import base, steps, table
from nonet.bench.ladder.result import Climb, Measured, Store
from nonet.bench.ladder.rungs import Rung, choose, default_rungs
from nonet.bench.ladder.telemetry import Telemetry, counters_between, parse_metrics
from nonet.bench.ladder.workload import read_jsonl, sample
from nonet.bench.metrics import Limits, Quantiles, Summary
from nonet.config.options import options
from nonet.core.errors import ConfigError, UnavailableError, UnknownNameError


def summary(rate: float) -> Summary:
    quantiles = Quantiles(count=4, mean=0.2, p50=0.1, p90=0.3, p99=0.4, max=0.5)
    return Summary(
        num_requests=4, num_failed=0, duration_s=100.0 / rate, prompt_tokens=50, cached_tokens=0, output_tokens=100,
        output_tokens_per_s=rate, total_tokens_per_s=1.5 * rate, requests_per_s=rate / 25, goodput_rps=0.5,
        ttft_s=quantiles, tpot_s=quantiles, itl_s=quantiles, e2e_s=quantiles, send_lag_s=quantiles,
    )  # fmt: skip


def measured(name: str, *rates: float, error: str | None = None, **counters: float) -> Measured:
    return Measured(
        name=name,
        settings={},
        runs=[summary(rate) for rate in rates],
        latency=summary(rates[0]) if rates else None,
        telemetry=Telemetry(counters=counters),
        error=error,
    )


def grew(counter: str) -> Rung:
    """A rung whose technique shows itself in one counter."""

    def proof(now: Telemetry, below: Telemetry | None) -> str | None:
        count = now.counters.get(counter, 0)
        return f"{count:.0f} {counter}" if count else None

    return Rung(name=counter, settings={counter: "on"}, restores={counter: "off"}, proof=proof)


PLAN = Plan(
    workload=sample(4),
    options={"model": "m"},
    resolve=lambda config: pytest.fail("nothing is resolved here"),
    repeats=2,
    limits=Limits(),
)


class Runs:
    """Stands in for servers: a technique that is on works, unless it is said to be broken."""

    def __init__(self, broken: str = "") -> None:
        self.asked: list[str] = []
        self.broken = broken

    def __call__(self, name: str, settings: dict[str, str], plan: Plan) -> Measured:
        self.asked.append(name)
        on = [key for key, value in settings.items() if value == "on" and key != self.broken]
        made = measured(name, 10.0 * 2 ** len(on), **dict.fromkeys(on, 1.0))
        return msgspec.structs.replace(made, settings=settings)


def test_rungs_add_up_and_each_is_left_out_once(tmp_path: Path) -> None:
    runs = Runs()
    rungs = [grew(name) for name in ("naive", "a", "b")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, run=runs)
    assert runs.asked == ["naive", "a", "b", "without a", "without b"]
    assert [one.tokens_per_s for one in found.rungs] == [20.0, 40.0, 80.0]
    assert found.without[0].settings == {"naive": "on", "a": "off", "b": "on"}
    assert all(one.error is None and one.proof for one in found.rungs)


def test_a_rung_that_does_nothing_is_caught(tmp_path: Path) -> None:
    """The mutant: a switch that is set and acts on nothing."""
    rungs = [grew(name) for name in ("naive", "a", "b")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, run=Runs(broken="b"))
    assert [one.error for one in found.rungs][:2] == [None, None]
    assert found.rungs[2].error == "the telemetry shows no trace of b: it did not act"


def test_an_interrupted_climb_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rungs = [grew(name) for name in ("naive", "a", "b")]
    first = Runs()
    climb(rungs[:2], PLAN, Store(tmp_path), {"commit": "1"}, leave_out=False, run=first)
    again = Runs()
    climb(rungs, PLAN, Store(tmp_path), {"commit": "1"}, leave_out=False, run=again)
    assert again.asked == ["b"]
    other_commit = Runs()
    climb(rungs, PLAN, Store(tmp_path), {"commit": "2"}, leave_out=False, run=other_commit)
    assert other_commit.asked == ["naive", "a", "b"]


def test_what_failed_is_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("k", measured("a", error="no memory"))
    assert store.get("k") is None
    store.put("k", measured("a", 3.0))
    found = store.get("k")
    assert found is not None
    assert found.rates == [3.0]


def test_the_first_rung_sets_the_rate_of_the_latency_pass(tmp_path: Path) -> None:
    rates: list[float | None] = []

    def run(name: str, settings: dict[str, str], plan: Plan) -> Measured:
        rates.append(plan.latency_rate_rps)
        made = measured(name, 100.0, naive=1.0, a=1.0, b=1.0)
        return msgspec.structs.replace(made, latency_rate_rps=plan.latency_rate_rps or 2.5)

    rungs = [grew("naive"), grew("a"), grew("b")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, run=run)
    assert rates == [None, 2.5, 2.5]
    assert found.latency_rate_rps == 2.5


def test_a_lossy_rung_gets_its_quality_or_says_why_not(tmp_path: Path) -> None:
    lossy = replace(grew("a"), is_lossy=True)
    seen: list[dict[str, str]] = []

    def quality(settings: dict[str, str]) -> dict[str, float]:
        seen.append(settings)
        return {"KL": 0.25}

    rungs = [grew("naive"), lossy]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, quality=quality, run=Runs())
    assert [one.quality for one in found.rungs] == [None, {"KL": 0.25}]
    climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, quality=quality, run=Runs())
    assert seen == [{"naive": "on", "a": "on"}]  # kept

    def unavailable(settings: dict[str, str]) -> dict[str, float]:
        raise UnavailableError("NONET_DATA is not set")

    elsewhere = Store(tmp_path / "other")
    found = climb(rungs, PLAN, elsewhere, {}, leave_out=False, quality=unavailable, run=Runs())
    assert found.rungs[1].error is None
    assert "quality: NONET_DATA is not set" in str(found.rungs[1].proof)


def a_climb() -> Climb:
    return Climb(
        model="m", workload="w", workload_sha256="0" * 64, workload_facts={}, price_per_hour=3.6,
        latency_rate_rps=2.0, device={"cpu": "c <i>"}, commit=None, libraries={}, lossy=["lossy"],
        anchors=[measured("Hugging Face generate", 30.0)],
        rungs=[measured("naive", 20.0, 22.0), measured("good", 60.0, 62.0), measured("nothing", 61.0, 63.0),
               measured("lossy", 90.0), measured("broken", error="<script>alert(1)</script>")],
        without=[measured("without good", 40.0), measured("without nothing", 90.0)],
    )  # fmt: skip


def test_the_base_is_the_faster_of_the_first_rung_and_the_anchor() -> None:
    climbed = a_climb()
    over = base(climbed)
    assert over is not None
    assert over.name == "Hugging Face generate"
    by_name = {step.measured.name: step for step in steps(climbed)}
    assert by_name["good"].over_base == pytest.approx(61 / 30)
    assert by_name["good"].over_below == pytest.approx(61 / 21)
    assert by_name["good"].cost_per_million == pytest.approx(3.6 / 3600 / 61 * 1e6)


def test_a_difference_within_the_spread_is_none() -> None:
    by_name = {step.measured.name: step for step in steps(a_climb())}
    assert by_name["nothing"].over_below is None
    shown = table(a_climb())
    line = next(line for line in shown.splitlines() if line.startswith("nothing"))
    assert "none shown" in line
    assert "quality not measured" in next(
        line for line in shown.splitlines() if line.startswith("lossy")
    )


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.outside += [
            value or "" for name, value in attrs if name in ("src", "href") or tag == "script"
        ]

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_the_page_says_what_the_json_says_and_asks_nobody() -> None:
    climbed = a_climb()
    text = page(climbed)
    cells = _Cells()
    cells.feed(text)
    assert not cells.outside
    assert "<script" not in text
    assert "c &lt;i&gt;" in text
    rows = {row[0]: row for row in cells.rows}
    for step in steps(climbed):
        row = rows[step.measured.name]
        if step.measured.runs:
            assert row[1] == f"{step.measured.tokens_per_s:.1f}"
            assert row[4] == f"{step.cost_per_million:.3f}"
            assert row[5] == f"{0.1:.3f}"
            assert row[7] == f"{100.0:.1f}"
    bars = re.findall(r'<rect x="\d+" y="\d+" width="([\d.]+)"', text)
    assert len(bars) == 5
    costs = [step.cost_per_million for step in steps(climbed) if step.cost_per_million]
    assert sorted(bars, key=float) == [bar for _, bar in sorted(zip(costs, bars, strict=True))]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_setting_is_an_option(device: str) -> None:
    for rung in default_rungs(device):
        assert set(rung.settings) | set(rung.restores) <= set(options())
        assert not rung.restores or set(rung.restores) <= set(rung.settings)


def test_rungs_by_name() -> None:
    rungs = default_rungs("cpu")
    assert [rung.name for rung in choose(rungs, ["prefix cache"])] == ["naive", "prefix cache"]
    with pytest.raises(UnknownNameError, match="Did you mean 'prefix cache'"):
        choose(rungs, ["prefix cash"])


def test_metrics_are_read_and_subtracted() -> None:
    text = 'nonet_steps_total{model_name="m"} 3.0\nnonet_ttft_seconds_bucket{le="1"} 4\nvllm:x 3\n'
    assert parse_metrics(text) == {"nonet_steps": 3.0}
    assert counters_between({"a": 1.0}, {"a": 3.0, "b": 2.0}) == {"a": 2.0, "b": 2.0}


def test_the_sample_has_every_kind_and_is_the_same_for_a_seed() -> None:
    workload = sample(200, seed=3)
    assert workload.digest() == sample(200, seed=3).digest() != sample(200, seed=4).digest()
    texts = [str(item.messages) for item in workload.items]
    assert len(set(texts)) < len(texts)  # repeats
    assert any("Rename the function" in text for text in texts)
    assert any("JSON object" in text for text in texts)
    documents = [
        item.messages[0]["content"]
        for item in workload.items
        if "The document" in str(item.messages)
    ]
    assert len(set(documents)) <= 4 < len(documents)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"messages": []}', "give messages"),
        ('{"messages": [{"role": "user", "content": "a"}], "max_tokens": "3"}', "give messages"),
        ("", "holds no requests"),
    ],
)
def test_a_bad_workload_file_says_which_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=reason):
        read_jsonl(path)
