"""From a climb to a configuration: the cheapest that was seen to meet the targets, as a file for `nonet serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nonet.bench.ladder.report import quality_words
from nonet.bench.ladder.result import Climb, Measured
from nonet.bench.metrics import Quantiles
from nonet.config.convert import convert
from nonet.config.options import options
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError, UnknownNameError

__all__ = ["QUANTILES", "Choice", "Targets", "as_toml", "cheapest", "parse_targets", "read_climb"]

QUANTILES = ("p50", "p90", "p99")
TARGETS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds that the named latencies may take at `quantile`."""

    limits: dict[str, float]  # "ttft" | "tpot" | "e2e"
    quantile: str = "p99"

    def missed(self, one: Measured) -> str | None:
        """By how much a configuration is too slow, in words; None when it meets all."""
        seen = one.shown_latency
        assert seen is not None, "only what was measured is judged"
        for name, limit in self.limits.items():
            found: Quantiles | None = getattr(seen, f"{name}_s")
            value = float("inf") if found is None else getattr(found, self.quantile)
            if value > limit:
                return f"{name} {value:.3g} s, {limit:g} asked for"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration that was chosen, and what it costs."""

    measured: Measured
    cost_per_million: float


def parse_targets(text: str, quantile: str) -> Targets:
    """`ttft=0.5,tpot=0.05` in seconds.

    >>> parse_targets("ttft=0.5", "p99").limits
    {'ttft': 0.5}
    """
    if quantile not in QUANTILES:
        raise ConfigError(f"quantile is {quantile!r}; give {', '.join(QUANTILES)}")
    limits: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = part.partition("=")
        if name not in TARGETS:
            raise UnknownNameError(f"no target {name!r}. {did_you_mean(name, list(TARGETS))}")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = 0.0
        if not 0 < limits[name] < float("inf"):
            raise ConfigError(f"{name} is {value!r}; give seconds above 0, as in ttft=0.5")
    if not limits:
        raise ConfigError("no target is given; write it as in ttft=0.5,tpot=0.05 (seconds)")
    return Targets(limits, quantile)


def read_climb(file: Path) -> Climb:
    """What `nonet ladder` wrote."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Climb)
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}; measure first, with: nonet ladder MODEL --out {file.parent}"
        ) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is no result of nonet ladder: {error}") from None


def cheapest(climb: Climb, targets: Targets, *, lossless: bool = False) -> Choice:
    """Of all rungs and of the full stack without one of them. ConfigError when none meets the targets."""
    candidates: list[Choice] = []
    judged: list[tuple[float, str]] = []
    for one in (*climb.rungs, *climb.without):
        cost = one.cost_per_million(climb.price_per_hour)
        if not one.is_shown or cost is None or (lossless and _lossy_in(climb, one)):
            continue
        missed = targets.missed(one)
        if missed is None:
            candidates.append(Choice(one, cost))
        else:
            judged.append((cost, f"{one.name} ({missed})"))
    if candidates:
        return min(candidates, key=lambda choice: choice.cost_per_million)
    nearest = "; ".join(words for _, words in sorted(judged)[:3]) or "nothing was measured"
    rate = climb.latency_rate_rps
    at = f"at {rate:.2f} requests per second" if rate else "with all requests at once"
    raise ConfigError(
        f"no measured configuration meets the targets at {targets.quantile}, {at}. The cheapest miss them: {nearest}. "
        "Give longer targets, or measure at a lower load"
    )


def as_toml(climb: Climb, choice: Choice, given: Mapping[str, str], targets: Targets) -> str:
    """A file for `nonet serve --config`: `given` options and those of the choice, with the figures as comments."""
    rows = options()
    seen = choice.measured.shown_latency
    lines = [
        f"# {choice.measured.name}: {choice.cost_per_million:.4g} per million output tokens at "
        f"{climb.price_per_hour:g} per hour",
        f"# measured on {climb.workload} ({climb.workload_sha256[:12]}), commit {climb.commit or 'unknown'}",
    ]
    for name, limit in targets.limits.items():
        found: Quantiles | None = getattr(seen, f"{name}_s")
        if found is not None:
            value = getattr(found, targets.quantile)
            lines.append(f"# {name} {targets.quantile}: {value:.4g} s, {limit:g} asked for")
    lines += _lossy_lines(climb, choice.measured)
    sections: dict[str, list[str]] = {}
    for name, text in {**given, **choice.measured.settings}.items():
        row = rows[name]
        value = convert(row, text, "the ladder", is_text=True)
        if value != row.default and value is not None:
            sections.setdefault(row.section, []).append(f"{name} = {_toml_value(value)}")
    for section, entries in sections.items():
        lines += ["", f"[{section}]", *sorted(entries)]
    return "\n".join(lines) + "\n"


def _lossy_in(climb: Climb, one: Measured) -> list[Measured]:
    """The lossy rungs that a configuration holds: rungs are cumulative; the full stack without one has the others."""
    below = climb.rungs
    if one in below:
        below = below[: below.index(one) + 1]
    gone = one.name.removeprefix("without ") if one in climb.without else None
    return [rung for rung in below if rung.name in climb.lossy and rung.name != gone]


def _lossy_lines(climb: Climb, one: Measured) -> list[str]:
    """What changes answers, and by how much; nothing for a lossless configuration."""
    lossy = _lossy_in(climb, one)
    if not lossy:
        return []
    names = ", ".join(rung.name for rung in lossy)
    known = [rung for rung in lossy if rung.quality]
    if not known:
        return [f"# lossy: {names}; quality not measured"]
    together = known[-1]  # with all the rungs below it
    return [
        f"# lossy: {names}",
        f"# quality up to {together.name}: {quality_words(climb, together)}",
    ]


def _toml_value(value: object) -> str:
    """Numbers and truth values as TOML has them; strings escaped as in JSON, whose escapes TOML shares."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
