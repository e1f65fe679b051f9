"""From a ladder to a configuration file: what is chosen, what is written, and what is said when nothing will do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.unit.bench.ladder.made_up import a_climb, measured

from nonet.bench.ladder.result import Climb
from nonet.bench.ladder.tune import as_toml, cheapest, parse_targets, read_climb
from nonet.cli.main import run
from nonet.config.load import load
from nonet.core.errors import ConfigError, NonetError

SETTINGS = {
    "batching": "static:size=32",
    "gateway": "exact_cache,ledger",
    "kv_prune": "snapkv:window=16,budget=256",
    "max_tokens_per_step": "none",
    "prefix_cache": "false",
    "speculate": "none",
    "threads": "3",
}


def tuned_climb() -> Climb:
    climb = a_climb()
    fast = measured("lossy", 90.0, latency_s=0.05, settings=SETTINGS)
    return msgspec.structs.replace(
        climb, rungs=[*climb.rungs[:3], fast], without=[measured("without good", 80.0)]
    )


def test_the_cheapest_that_meets_the_targets() -> None:
    climb = tuned_climb()
    # p99 is 1.6 s for naive, 0.4 s for the others, 0.2 s for the lossy one.
    assert cheapest(climb, parse_targets("ttft=2", "p99")).measured.name == "lossy"
    lossless = cheapest(climb, parse_targets("ttft=2", "p99"), lossless=True)
    assert lossless.measured.name == "nothing"
    assert lossless.cost_per_million == pytest.approx(3.6 / 3600 / 62 * 1e6)
    assert cheapest(climb, parse_targets("ttft=0.3,tpot=0.3", "p99")).measured.name == "lossy"


def test_a_rung_that_did_not_act_is_never_chosen() -> None:
    climb = tuned_climb()
    broken = msgspec.structs.replace(climb.rungs[-1], error="it did not act")
    climb = msgspec.structs.replace(climb, rungs=[*climb.rungs[:-1], broken])
    assert cheapest(climb, parse_targets("ttft=2", "p99")).measured.name == "without good"


def test_none_meets_them() -> None:
    with pytest.raises(ConfigError) as caught:
        cheapest(tuned_climb(), parse_targets("ttft=0.01", "p50"))
    message = str(caught.value)
    assert (
        "no measured configuration meets the targets at p50, at 2.00 requests per second" in message
    )
    assert "lossy (ttft 0.05 s, 0.01 asked for)" in message


def test_the_file_is_what_was_measured(tmp_path: Path) -> None:
    climb = tuned_climb()
    targets = parse_targets("ttft=2", "p99")
    choice = cheapest(climb, targets)
    given = {"model": 'a "model"\\', "memory_gib": "1.5"}
    file = tmp_path / "nonet.toml"
    file.write_text(as_toml(climb, choice, given, targets))
    config = load(file=file).config
    assert config.model.model == given["model"]
    assert config.cache.memory_gib == 1.5
    assert config.scheduler.batching == "static:size=32"
    assert config.gateway.gateway == ("exact_cache", "ledger")
    assert config.cache.kv_prune == "snapkv:window=16,budget=256"
    assert config.cache.prefix_cache is False
    assert config.runtime.threads == 3
    as_options = load(flags={}, environ={}, file=None).config
    assert config.scheduler.max_tokens_per_step is None
    # Nothing else is set: what is left is at its defaults.
    assert config.server == as_options.server
    assert config.lora == as_options.lora
    assert config == replace(
        as_options, model=config.model, cache=config.cache, scheduler=config.scheduler,
        runtime=config.runtime, gateway=config.gateway,
    )  # fmt: skip


def test_a_lossy_choice_says_what_it_costs_in_quality() -> None:
    climb, targets = tuned_climb(), parse_targets("ttft=2", "p99")

    def comments(climb: Climb, *, lossless: bool = False) -> list[str]:
        choice = cheapest(climb, targets, lossless=lossless)
        return [line for line in as_toml(climb, choice, {}, targets).splitlines() if "ity" in line]

    assert comments(climb) == ["# lossy: lossy; quality not measured"]
    with_quality = msgspec.structs.replace(climb.rungs[-1], quality={"KL": 0.25})
    known = msgspec.structs.replace(climb, rungs=[*climb.rungs[:-1], with_quality])
    assert comments(known) == ["# quality up to lossy: KL 0.25"]
    assert comments(known, lossless=True) == []
    # The full stack without a rung still holds what is lossy in it, without that rung it does not.
    fast = [measured("without good", 99.0), measured("without lossy", 98.0)]
    full = msgspec.structs.replace(known, without=fast)
    assert comments(full) == ["# quality up to lossy: KL 0.25"]
    assert cheapest(full, targets, lossless=True).measured.name == "without lossy"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, out = tmp_path / "ladder.json", tmp_path / "nonet.toml"
    results.write_bytes(msgspec.json.encode(tuned_climb()))
    command = ["tune", "--results", str(results), "--out", str(out)]
    assert run([*command, "--slo", "ttft=2,tpot=2"]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert load(file=out).config.runtime.threads == 3
    assert run([*command, "--slo", "ttft=0.001"]) == 2
    assert "no measured configuration meets the targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "quantile", "message"),
    [
        ("", "p99", "no target is given"),
        ("ttft", "p99", "give seconds above 0"),
        ("ttft=-1", "p99", "give seconds above 0"),
        ("tfft=1", "p99", "Did you mean 'ttft'"),
        ("ttft=1", "p98", "give p50, p90, p99"),
    ],
)
def test_bad_targets(text: str, quantile: str, message: str) -> None:
    with pytest.raises(NonetError, match=message):
        parse_targets(text, quantile)


def test_results_that_are_missing_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="measure first, with: nonet ladder"):
        read_climb(tmp_path / "ladder.json")
    (tmp_path / "ladder.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no result of nonet ladder"):
        read_climb(tmp_path / "ladder.json")
