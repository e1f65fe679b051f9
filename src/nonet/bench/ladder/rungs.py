"""The rungs: one technique each, as options of the ordinary configuration, and the proof that it acted.

The first rung is what people do without a serving stack. Each later one changes a few options on top of those below it.
Where a seam has a catalogue, its rung takes the catalogue's entry, so what is not installed or not offered on a device
says so and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nonet.bench.ladder.telemetry import Telemetry
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
    """From naive to the full stack, in the default order, as far as `device` ("cpu" or "cuda") has them."""
    kernels = "native" if device == "cpu" else "triton"
    return [
        Rung(name="naive", settings=_naive(device), restores={}, proof=_ran),
        Rung(
            name="continuous batching",
            settings={"batching": "continuous"},
            restores={"batching": "static:size=32"},
            proof=_counted("nonet_late_joins", "requests joined a running batch"),
        ),
        Rung(
            name="paged KV",
            settings={"kv_reservation": "paged"},
            restores={"kv_reservation": "worst_case"},
            proof=_fewer_blocks,
        ),
        Rung(
            name="fused kernels and flash attention",
            settings={"kernels": kernels, "recording": "false"},
            restores={"kernels": "reference", "recording": "false"},
            proof=_configured("kernels", kernels),
        ),
        Rung(
            name="recorded forward pass" if device == "cpu" else "CUDA graphs",
            settings={"recording": "true"},
            restores={"recording": "false"},
            proof=_counted("nonet_recorded_steps", "steps replayed the recording"),
        ),
        Rung(
            name="chunked prefill",
            settings={"chunked_prefill": "true"},
            restores={"chunked_prefill": "false"},
            proof=_counted("nonet_partial_prefills", "pieces of prompts"),
        ),
        Rung(
            name="prefix cache",
            settings={"prefix_cache": "true"},
            restores={"prefix_cache": "false"},
            proof=_counted("nonet_prefix_hit_tokens", "prompt tokens taken from the cache"),
        ),
        Rung(
            name="weight quantisation",
            settings={"weight_format": "native" if device == "cpu" else "fp8"},
            restores={"weight_format": "dense"},
            proof=_less("weight_bytes", "bytes of weights"),
            is_lossy=True,
        ),
        Rung(
            name="exact cache",
            settings={"gateway": "exact_cache"},
            restores={"gateway": ""},
            proof=_answered("exact"),
        ),
    ]


def choose(rungs: Sequence[Rung], names: Sequence[str]) -> list[Rung]:
    """The first rung, and of the others those named, in the ladder's order; all when none is named."""
    known = [rung.name for rung in rungs]
    for name in names:
        if name not in known:
            raise UnknownNameError(f"no rung {name!r}. {did_you_mean(name, known)}")
    return [
        rung for number, rung in enumerate(rungs) if not names or not number or rung.name in names
    ]


def _naive(device: str) -> dict[str, str]:
    """Static batches, room for the longest output, plain kernels, no reuse."""
    return {
        "batching": "static:size=32",
        "kv_reservation": "worst_case",
        "kernels": "reference",
        "recording": "false",
        "chunked_prefill": "false",
        "prefix_cache": "false",
        "weight_format": "dense",
        "max_num_seqs": "32",
        "gateway": "",
        "device": device,
    }


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
