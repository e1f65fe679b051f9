"""What a server tells of its work: counters over a run, gauges at its end, its plan, and where answers came from."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["Telemetry", "counters_between", "parse_metrics"]


# Values that say where a server stands, not how much it did.
GAUGES = ("nonet_kv_blocks_peak",)


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """Counters are differences over the run; `config` and `memory` are the resolved plan; `answers` counts outcomes."""

    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    config: dict[str, object] = {}
    memory: dict[str, int] = {}
    answers: dict[str, int] = {}

    def figure(self, name: str) -> float:
        """A counter, a gauge that outlives the run, a size of the plan, or `answers:` and an outcome; 0 if unknown.

        >>> Telemetry(counters={"nonet_steps": 3.0}, answers={"exact": 2}).figure("answers:exact")
        2.0
        """
        if name.startswith("answers:"):
            return float(self.answers.get(name.removeprefix("answers:"), 0))
        if name in self.memory:
            return float(self.memory[name])
        if name in GAUGES:
            return self.gauges.get(name, 0.0)
        return self.counters.get(name, 0.0)


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format: the values of nonet's own counters and gauges, summed over their labels.

    >>> parse_metrics('# HELP x\\nnonet_steps_total{model_name="m"} 3.0\\nnonet_kv_blocks{model_name="m"} 8.0\\n')
    {'nonet_steps': 3.0, 'nonet_kv_blocks': 8.0}
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("nonet_"):
            continue
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0].removesuffix("_total")
        if not name.endswith(("_bucket", "_sum", "_count")):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def counters_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much each value grew."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
