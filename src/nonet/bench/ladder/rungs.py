"""The rungs: one technique each, as options of the ordinary configuration, and the proof that it acted.

The first rung is what people do without a serving stack. Each later one changes a few options on top of those below it.
They come from the list of techniques: one that is entered there appears here by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nonet.bench.ladder.telemetry import Telemetry
from nonet.config.techniques import TECHNIQUES, Sign, Technique, added, taken_away
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError, UnknownNameError

__all__ = [
    "STATIC_BATCH",
    "Proof",
    "Rung",
    "choose",
    "default_rungs",
    "sift",
    "unclimbed",
    "with_prompt_room",
]

# What the technique did, in words; None when nothing shows that it did anything. The second is what is without it.
Proof = Callable[[Telemetry, Telemetry | None], str | None]

STATIC_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """`settings` are option names and values; `restores` undo them, to leave the rung out of the full stack.

    A rung that `is_base` is part of the first one: it is shown by leaving it out and has no line of its own. One that
    `stands_in_for` another is climbed where that one is not.
    """

    name: str
    settings: Mapping[str, str]
    restores: Mapping[str, str] = field(default_factory=dict)
    proof: Proof
    is_lossy: bool = False
    is_base: bool = False
    stands_in_for: str | None = None

    def on_top_of(self, below: Mapping[str, str]) -> dict[str, str]:
        return added(below, self.settings)

    def left_out_of(self, full: Mapping[str, str]) -> dict[str, str]:
        return taken_away(full, self.settings, self.restores)


def default_rungs(device: str, *, has_weights: bool = True) -> list[Rung]:
    """From naive to the full stack, in the order of the list, as far as `device` ("cpu" or "cuda") has them.

    Without weights (random ones) what needs them is left out.
    """
    chosen = [
        one
        for one in TECHNIQUES
        if one.is_rung_on(device) and (has_weights or not one.needs_weights)
    ]
    naive: dict[str, str] = {"device": device}
    for one in chosen:
        naive |= one.on if one.is_base else one.off
    first = Rung(name="naive", settings=naive, proof=_ran)
    return [first, *(_rung(one) for one in chosen)]


def _rung(technique: Technique) -> Rung:
    sign = technique.sign
    return Rung(
        name=technique.name,
        settings=technique.on,
        restores=technique.off,
        proof=_configured(technique) if sign is None else _shown(sign),
        is_lossy=technique.is_lossy,
        is_base=technique.is_base,
        stands_in_for=technique.stands_in_for,
    )


def unclimbed(device: str) -> dict[str, str]:
    """Techniques that readers would look for among the rungs, and why they are none."""
    return {
        one.name: one.no_rung
        for one in TECHNIQUES
        if one.no_rung is not None and one.device in (None, device)
    }


def with_prompt_room(rungs: Sequence[Rung], longest_prompt: int) -> list[Rung]:
    """A step that starts a static batch holds the prompts of the whole batch, as people's own loops do.

    Only chunked prefill lets a step be smaller; left out of the full stack, either of the two needs the room again.
    """
    room = {"max_tokens_per_step": str(STATIC_BATCH * longest_prompt)}
    first, *others = rungs
    made = [replace(first, settings={**first.settings, **room})]
    for one in others:
        if "chunked_prefill" in one.settings:
            smaller = {**one.settings, "max_tokens_per_step": "none"}
            made.append(replace(one, settings=smaller, restores={**one.restores, **room}))
        elif "batching" in one.settings:
            made.append(replace(one, restores={**one.restores, **room}))
        else:
            made.append(one)
    return made


def choose(rungs: Sequence[Rung], names: Sequence[str]) -> list[Rung]:
    """The first rung, and of the others those named, in the ladder's order; all when none is named."""
    known = [rung.name for rung in rungs]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"no rung {name!r}. {did_you_mean(name, known)}")
    if not names:
        return list(rungs)
    first, *others = rungs
    return [first, *(replace(one, stands_in_for=None) for one in others if one.name in names)]


def sift(
    rungs: Sequence[Rung], refusal: Callable[[Mapping[str, str]], str | None]
) -> tuple[list[Rung], dict[str, str]]:
    """The rungs that can be had, each on top of those below, and why the others cannot.

    `refusal` says why no engine can have such settings, None when one can. A rung that none can have would take down
    all above it.
    """
    first, *others = rungs
    reason = refusal(first.settings)
    if reason is not None:
        raise ConfigError(f"no engine can run the rung {first.name}: {reason}")
    kept, below = [first], dict(first.settings)
    refused: dict[str, str] = {}
    for rung in others:
        if rung.stands_in_for in [one.name for one in kept]:
            continue
        above = below if rung.is_base else rung.on_top_of(below)
        reason = refusal(above)
        if reason is None:
            kept.append(rung)
            below = above
        else:
            refused[rung.name] = reason
    return kept, refused


def _ran(now: Telemetry, without: Telemetry | None) -> str | None:
    steps = now.counters.get("nonet_steps", 0)
    return f"{steps:.0f} steps" if steps else None


def _shown(sign: Sign) -> Proof:
    """The figure is larger than without the technique, or smaller if less is the point."""

    def proof(now: Telemetry, without: Telemetry | None) -> str | None:
        count = now.figure(sign.figure)
        before = 0.0 if without is None else without.figure(sign.figure)
        if sign.is_less:
            return (
                f"{count:,.0f} {sign.words}, {before:,.0f} without" if 0 < count < before else None
            )
        return f"{count:,.0f} {sign.words}" if count > before else None

    return proof


def _configured(technique: Technique) -> Proof:
    """The server resolved the options as asked, and another way without the technique."""

    def proof(now: Telemetry, without: Telemetry | None) -> str | None:
        shown = []
        for option, text in technique.on.items():
            value = _as_option(now.config.get(option))
            was = None if without is None else _as_option(without.config.get(option))
            if value != text or value == was:
                return None
            shown.append(f"{option} {value}, {was} without")
        return "; ".join(shown)

    return proof


def _as_option(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
