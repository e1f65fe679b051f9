"""The ladder's rules, on measurements made up here: what counts as a saving, what is kept, what is shown."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.unit.bench.ladder.made_up import a_climb, measured

from nonet.bench.client import Target
from nonet.bench.ladder.climb import Budget, climb
from nonet.bench.ladder.measure import Plan, fresh_metrics, settled_metrics, warm_up_items
from nonet.bench.ladder.report import base, steps, table
from nonet.bench.ladder.result import BatchTier, Measured, Store
from nonet.bench.ladder.rungs import (
    Rung,
    choose,
    default_rungs,
    sift,
    unclimbed,
    with_prompt_room,
)
from nonet.bench.ladder.telemetry import Telemetry, counters_between, parse_metrics
from nonet.bench.ladder.workload import mixed, sample, synthetic
from nonet.bench.metrics import Limits
from nonet.config.options import options
from nonet.core.errors import ConfigError, UnavailableError, UnknownNameError


def grew(counter: str) -> Rung:
    """A rung whose technique shows itself in one counter."""

    def proof(now: Telemetry, without: Telemetry | None) -> str | None:
        count = now.counters.get(counter, 0)
        before = without.counters.get(counter, 0) if without is not None else 0
        return f"{count:.0f} {counter}" if count > before else None

    return Rung(name=counter, settings={counter: "on"}, restores={counter: "off"}, proof=proof)


PLAN = Plan(
    workload=sample(4),
    options={"model": "m"},
    resolve=lambda config: pytest.fail("nothing is resolved here"),
    repeats=2,
    limits=Limits(),
)


def test_one_run_has_the_spread_of_the_others_and_without_any_nothing_is_claimed() -> None:
    climbed = a_climb()
    single = measured("single", 70.0)
    rungs = [measured("naive", 20.0, 40.0), measured("good", 62.0), single]
    apart = msgspec.structs.replace(climbed, anchors=[], rungs=rungs, without=[])
    shown = {step.measured.name: step.over_below for step in steps(apart)}
    assert shown["good"] == pytest.approx(62 / 30)  # 30 +- 10 and 62 +- a third do not overlap
    assert shown["single"] is None  # 70 and 62 +- a third do
    once = [measured("naive", 20.0), measured("good", 62.0)]
    unknown = msgspec.structs.replace(climbed, anchors=[], rungs=once, without=[])
    assert [step.over_below for step in steps(unknown)] == [None, None]


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
    assert runs.asked == ["naive", "b", "a", "without a", "without b"]  # both ends first
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
    assert other_commit.asked == ["naive", "b", "a"]


def test_what_failed_is_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("k", measured("a", error="no memory"))
    assert store.get("k") is None
    store.put("k", measured("a", 3.0))
    found = store.get("k")
    assert found is not None
    assert found.rates == [3.0]


def test_what_takes_half_as_long_again_as_the_latest_must_fit() -> None:
    budget = Budget(100.0, now=iter([0.0, 30.0, 60.0]).__next__)
    budget.took(45.0)
    assert not budget.is_over()
    assert budget.is_over()
    assert not Budget().is_over()


def test_the_first_rung_sets_the_rate_of_the_latency_pass(tmp_path: Path) -> None:
    rates: list[float | None] = []

    def run(name: str, settings: dict[str, str], plan: Plan) -> Measured:
        rates.append(plan.latency_rate_rps)
        made = measured(name, 100.0, **dict.fromkeys(settings, 1.0))
        return msgspec.structs.replace(made, latency_rate_rps=plan.latency_rate_rps or 2.5)

    rungs = [grew("naive"), grew("a"), grew("b")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, run=run)
    assert rates == [None, 2.5, 2.5]
    assert found.latency_rate_rps == 2.5


def test_a_gpu_is_warm_when_it_has_met_every_prompt_and_small_batches() -> None:
    work = sample(40)
    assert warm_up_items(work, "cpu") == list(work.items[:2])
    warm = warm_up_items(work, "cuda")
    assert [item.messages for item in warm] == [item.messages for item in work.items]
    lengths = Counter(item.output_len for item in warm)
    assert max(lengths) <= 16
    assert len(lengths) > 7  # they end one after another


def test_the_batch_tier_is_measured_once_on_the_full_stack(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    def tier(settings: dict[str, str], plan: Plan) -> BatchTier:
        asked.append(settings)
        return BatchTier(settings=settings, rate_rps=plan.latency_rate_rps or 0.0)

    def run(name: str, settings: dict[str, str], plan: Plan) -> Measured:
        return msgspec.structs.replace(Runs()(name, settings, plan), latency_rate_rps=2.5)

    rungs = [grew("naive"), grew("a")]
    for _ in range(2):
        found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=False, run=run, tier=tier)
        assert found.batch_tier is not None
        assert found.batch_tier.rate_rps == 2.5
        assert "nothing was measured" in found.batch_tier.words(1.0)
    assert asked == [{"naive": "on", "a": "on"}]


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


def test_the_base_is_the_faster_of_the_first_rung_and_the_anchor() -> None:
    climbed = a_climb()
    over = base(climbed)
    assert over is not None
    assert over.name == "Hugging Face generate"
    by_name = {step.measured.name: step for step in steps(climbed)}
    assert by_name["good"].over_base == pytest.approx(61 / 30)
    assert by_name["good"].over_below == pytest.approx(61 / 21)
    assert by_name["good"].cost_per_million == pytest.approx(3.6 / 3600 / 61 * 1e6)


def test_the_head_says_what_the_figures_hold_for() -> None:
    head = table(a_climb()).splitlines()[0]
    for words in (
        "lengths times 0.25",
        "latencies at 2.00 requests/s",
        "goodput within TTFT 5 s, TPOT 0.2 s",
    ):
        assert words in head
    free = msgspec.structs.replace(a_climb(), limits={"ttft_s": None}, workload_facts={})
    assert "goodput" not in table(free).splitlines()[0]
    assert "lengths" not in table(free).splitlines()[0]


def test_a_difference_within_the_spread_is_none() -> None:
    by_name = {step.measured.name: step for step in steps(a_climb())}
    assert by_name["nothing"].over_below is None
    shown = table(a_climb())
    line = next(line for line in shown.splitlines() if line.startswith("nothing"))
    assert "none shown" in line
    assert "quality not measured" in next(
        line for line in shown.splitlines() if line.startswith("lossy")
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_setting_is_an_option(device: str) -> None:
    for rung in default_rungs(device):
        assert set(rung.settings) | set(rung.restores) <= set(options())
        assert not rung.restores or set(rung.restores) == set(rung.settings)


def test_a_static_batch_starts_with_all_its_prompts() -> None:
    """Else steps of a chunk's size would cut the naive batch short: a straw man."""
    rungs = with_prompt_room(default_rungs("cpu"), 100)
    by_name = {rung.name: rung for rung in rungs}
    assert by_name["naive"].settings["max_tokens_per_step"] == "3200"
    assert by_name["chunked prefill"].settings["max_tokens_per_step"] == "none"
    for name in ("chunked prefill", "continuous batching"):
        assert by_name[name].restores["max_tokens_per_step"] == "3200"


def test_what_every_stack_has_is_shown_by_leaving_it_out(tmp_path: Path) -> None:
    """CUDA graphs: on in the first rung too, where their absence would make it a straw man."""
    rungs = [grew("naive"), replace(grew("graphs"), is_base=True), grew("a")]
    rungs[0] = replace(rungs[0], settings={"naive": "on", "graphs": "on"})
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, run=Runs())
    assert [one.name for one in found.rungs] == ["naive", "a"]
    assert [one.name for one in found.without] == ["without graphs", "without a"]
    assert found.without[0].settings == {"naive": "on", "graphs": "off", "a": "on"}
    assert found.without[0].error is None


def test_a_rung_that_another_replaces_is_not_left_out(tmp_path: Path) -> None:
    """Two kernels are values of one option: without the upper one, the lower one is in its place."""

    def kernels(name: str) -> Rung:
        return Rung(
            name=name,
            settings={"kernels": name},
            restores={"kernels": "plain"},
            proof=lambda now, without: "ran",
        )

    first = Rung(name="naive", settings={"kernels": "plain"}, proof=lambda now, without: "ran")
    rungs = [first, kernels("flash"), kernels("fused")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, run=Runs())
    assert [(one.name, one.settings) for one in found.without] == [
        ("without fused", {"kernels": "flash"})
    ]


def test_what_is_idle_in_the_full_stack_is_caught(tmp_path: Path) -> None:
    """The second mutant: a technique that acts on its own rung and stops once another is on."""

    class Masked(Runs):
        def __call__(self, name: str, settings: dict[str, str], plan: Plan) -> Measured:
            if settings.get("b") == "on":
                settings = {key: value for key, value in settings.items() if key != "a"}
            return super().__call__(name, settings, plan)

    rungs = [grew(name) for name in ("naive", "a", "b")]
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, run=Masked())
    assert all(one.error is None for one in found.rungs)
    assert "did not act in the full stack" in str(found.without[0].error)
    assert found.without[1].error is None


def test_a_budget_keeps_both_ends_and_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    names = ("naive", "a", "b", "c", "d")
    rungs = [grew(name) for name in names]
    times = iter([0.0, 0.0, 50.0])  # begun, before naive, before d
    budget = Budget(100.0, now=lambda: next(times, 101.0))
    runs = Runs()
    found = climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, budget=budget, run=runs)
    assert runs.asked == ["naive", "d"]
    assert [bool(one.skipped) for one in found.rungs] == [False, True, True, True, False]
    assert all(one.skipped for one in found.without)
    assert found.rungs[-1].error is None
    again = Runs()
    climb(rungs, PLAN, Store(tmp_path), {}, leave_out=True, run=again)
    assert again.asked[:3] == ["c", "b", "a"]


def test_rungs_by_name() -> None:
    rungs = default_rungs("cpu")
    assert [rung.name for rung in choose(rungs, ["prefix cache"])] == ["naive", "prefix cache"]
    with pytest.raises(UnknownNameError, match="Did you mean 'prefix cache'"):
        choose(rungs, ["prefix cash"])


def test_a_rung_that_cannot_be_had_takes_down_nothing_above_it() -> None:
    """A directory of floats has no weights as in the file: the next best stands in, and the rungs above go on."""
    rungs = default_rungs("cpu")

    def refusal(settings: Mapping[str, str]) -> str | None:
        return "no block formats" if settings.get("weight_format") == "native" else None

    kept, refused = sift(rungs, refusal)
    assert refused == {"weights as in the file": "no block formats"}
    names = [rung.name for rung in kept]
    assert names[names.index("prefix cache") + 1 :][:2] == ["INT8 weights", "INT8 KV"]
    kept, refused = sift(rungs, lambda settings: None)
    assert "INT8 weights" not in [rung.name for rung in kept]
    assert refused == {}
    # One that is named stands in for nothing.
    named = choose(rungs, ["INT8 weights", "prefix cache"])
    kept, _ = sift(named, lambda settings: None)
    assert [rung.name for rung in kept] == ["naive", "prefix cache", "INT8 weights"]
    with pytest.raises(ConfigError, match="no engine can run the rung naive: too big"):
        sift(rungs, lambda settings: "too big")


def test_rungs_stand_in_the_order_that_the_page_promises() -> None:
    """Techniques of the engine from batching to pruning, then what stands above it."""
    order = ["continuous batching", "paged KV", "flash attention", "Triton kernels", "chunked prefill", "overlap",
             "prefix cache", "FP8 weights", "INT8 KV", "prompt lookup", "SnapKV", "exact cache"]  # fmt: skip
    names = [rung.name for rung in default_rungs("cuda") if not rung.is_base]
    assert names == ["naive", *order]
    assert list(unclimbed("cuda")) == ["semantic cache"]


async def test_metrics_are_taken_once_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's last report comes after the last answer: read too early, a technique seems not to have acted."""
    monkeypatch.setattr("nonet.bench.ladder.measure.SETTLING_S", 0.0)
    reports = [
        {"nonet_prefix_hit_tokens": 0.0, "nonet_running_sequences": 0.0},  # of before the run
        {"nonet_prefix_hit_tokens": 3.0, "nonet_running_sequences": 2.0},
        {"nonet_prefix_hit_tokens": 9.0, "nonet_running_sequences": 0.0},
        {"nonet_prefix_hit_tokens": 9.0, "nonet_running_sequences": 0.0},
    ]
    asked = [{**one, "nonet_http_responses": float(number)} for number, one in enumerate(reports)]

    async def read(target: Target) -> dict[str, float]:
        return asked.pop(0)

    found = await settled_metrics(Target("http://nowhere", "m"), read)
    assert found["nonet_prefix_hit_tokens"] == 9.0
    assert not asked


async def test_fresh_metrics_are_of_a_report_that_came_later() -> None:
    """Under load: what was told before the last answer lacks the tokens of a quarter of a second."""
    told = [5.0, 5.0, 9.0, 12.0]
    asked = [
        {"nonet_steps": steps, "nonet_http_responses": float(n)} for n, steps in enumerate(told)
    ]

    async def read(target: Target) -> dict[str, float]:
        return asked.pop(0) if len(asked) > 1 else asked[0]

    assert (await fresh_metrics(Target("http://nowhere", "m"), read))["nonet_steps"] == 9.0
    assert (await fresh_metrics(Target("http://nowhere", "m"), read))["nonet_steps"] == 12.0  # idle


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


def test_token_ids_for_random_weights() -> None:
    workload = synthetic(40, seed=1, scale=0.2, vocab_size=512)
    assert workload.digest() == synthetic(40, seed=1, scale=0.2, vocab_size=512).digest()
    prompts = [tuple(item.prompt_ids) for item in workload.items]
    assert all(0 <= token < 512 for prompt in prompts for token in prompt)
    assert len(prompts) - len(set(prompts)) == 4  # one in ten repeats
    beginnings = Counter(prompt[:6] for prompt in set(prompts))
    assert sum(count for count in beginnings.values() if count > 1) >= 10  # share a prefix
    assert max(len(prompt) for prompt in prompts) <= 205


@pytest.mark.skipif("NONET_DATA" not in os.environ, reason="NONET_DATA is not set")
def test_the_mix_of_the_data_sets() -> None:
    workload = mixed(Path(os.environ["NONET_DATA"]), 60, seed=2, scale=0.15)
    assert (
        workload.digest() == mixed(Path(os.environ["NONET_DATA"]), 60, seed=2, scale=0.15).digest()
    )
    arrivals = [item.arrival_s for item in workload.items]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0.0 < arrivals[-1]
    texts = [str(item.messages) for item in workload.items]
    assert len(set(texts)) < len(texts)
    documents = [text for text in set(texts) if "The document" in text]
    heads = Counter(text[:600] for text in documents)
    assert 1 < len(heads) < len(documents)  # sessions: several questions about one document
    assert len({item.output_len for item in workload.items}) > 10
