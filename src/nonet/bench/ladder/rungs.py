"""The rungs: one technique each, as options of the ordinary configuration, and the proof that it acted.

The first rung is what people do without a serving stack. Each later one changes a few options on top of those below it.
They come from the list of techniques: one that is entered there appears here by itself, once it says how it is proven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nonet.bench.ladder.telemetry import Telemetry
from nonet.config.techniques import TECHNIQUES, Technique
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import UnknownNameError

__all__ = ["Proof", "Rung", "choose", "default_rungs"]

# What the technique did, in words; None when nothing shows that it did anything. The second is the rung below.
Proof = Callable[[Telemetry, Telemetry | None], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """`settings` are option names and values; `restores` undo them, to leave the rung out of the full stack."""

    name: str
    settings: Mapping[str, str]
    restores: Mapping[str, str]
    proof: Proof
    is_lossy: bool = False


def default_rungs(device: str) -> list[Rung]:
    """From naive to the full stack, in the order of the list, as far as `device` ("cpu" or "cuda") has them."""
    chosen = [one for one in TECHNIQUES if one.is_rung and one.device in (None, device)]
    naive: dict[str, str] = {"max_num_seqs": "32", "device": device}
    for one in chosen:
        naive |= one.off
    first = Rung(name="naive", settings=naive, restores={}, proof=_ran)
    return [first, *(_rung(one) for one in chosen)]


def _rung(technique: Technique) -> Rung:
    return Rung(
        name=technique.name,
        settings=technique.on,
        restores=technique.off,
        proof=PROOFS[technique.name],
        is_lossy=technique.is_lossy,
    )


def choose(rungs: Sequence[Rung], names: Sequence[str]) -> list[Rung]:
    """The first rung, and of the others those named, in the ladder's order; all when none is named."""
    known = [rung.name for rung in rungs]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"no rung {name!r}. {did_you_mean(name, known)}")
    return [
        rung for number, rung in enumerate(rungs) if not names or not number or rung.name in names
    ]


def _ran(now: Telemetry, below: Telemetry | None) -> str | None:
    steps = now.counters.get("nonet_steps", 0)
    return f"{steps:.0f} steps" if steps else None


def _counted(counter: str, words: str) -> Proof:
    """The counter grew, and more than on the rung below."""

    def proof(now: Telemetry, below: Telemetry | None) -> str | None:
        count = now.counters.get(counter, 0)
        before = below.counters.get(counter, 0) if below is not None else 0
        return f"{count:.0f} {words}" if count > before else None

    return proof


def _fewer_blocks(now: Telemetry, below: Telemetry | None) -> str | None:
    peak = now.gauges.get("nonet_kv_blocks_peak", 0)
    before = below.gauges.get("nonet_kv_blocks_peak", 0) if below is not None else 0
    return f"{peak:.0f} KV blocks held at most, {before:.0f} before" if 0 < peak < before else None


def _configured(option: str, value: str) -> Proof:
    def proof(now: Telemetry, below: Telemetry | None) -> str | None:
        was = below.config.get(option) if below is not None else None
        is_new = now.config.get(option) == value and was != value
        return f"{option} {value}, {was} before" if is_new else None

    return proof


def _less(figure: str, words: str) -> Proof:
    """A figure of the memory plan shrank."""

    def proof(now: Telemetry, below: Telemetry | None) -> str | None:
        size = now.memory.get(figure, 0)
        before = below.memory.get(figure, 0) if below is not None else 0
        return f"{size:,} {words}, {before:,} before" if 0 < size < before else None

    return proof


def _answered(outcome: str) -> Proof:
    def proof(now: Telemetry, below: Telemetry | None) -> str | None:
        count = now.answers.get(outcome, 0)
        return f"{count} answers from the {outcome} cache" if count else None

    return proof


# What shows that a technique acted.
PROOFS: dict[str, Proof] = {
    "continuous batching": _counted("nonet_late_joins", "requests joined a running batch"),
    "paged KV": _fewer_blocks,
    "native kernels": _configured("kernels", "native"),
    "Triton kernels": _configured("kernels", "triton"),
    "recorded forward pass": _counted("nonet_recorded_steps", "steps replayed the recording"),
    "chunked prefill": _counted("nonet_partial_prefills", "pieces of prompts"),
    "prefix cache": _counted("nonet_prefix_hit_tokens", "prompt tokens taken from the cache"),
    "weights as in the file": _less("weight_bytes", "bytes of weights"),
    "FP8 weights": _less("weight_bytes", "bytes of weights"),
    "prompt lookup": _counted("nonet_accepted_tokens", "drafted tokens stood"),
    "INT8 KV": _less("kv_bytes_per_block", "bytes of a KV block"),
    "SnapKV": _counted("nonet_compactions", "caches pruned"),
    "exact cache": _answered("exact"),
}
