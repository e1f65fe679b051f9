"""The techniques that a configuration can switch, each with the options that turn it on and off.

The ladder climbs this list, the pairwise test crosses it with itself, and the matrix of docs/compatibility.md is made
from it, so a technique that is entered here is measured, tested and documented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.config.compat import Conflict, find_conflict

__all__ = [
    "LISTS",
    "TECHNIQUES",
    "Sign",
    "Technique",
    "added",
    "conflict_between",
    "matrix",
    "taken_away",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How a server shows that a technique acts: one figure beside the same figure without it.

    The figure is a counter of the metrics or a kind of answer (`answers:exact`), which must be larger, or one of the
    memory plan or a gauge, which must be smaller.
    """

    figure: str
    words: str  # what the figure counts
    is_less: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """`on` and `off` give the same options; none where each request says whether it wants it, or where it is always on.

    `is_rung` is False for what brings no speed by itself, or needs what a ladder cannot choose.

    Without a `sign` the resolved configuration is what shows it. `is_base`: the naive rung has it too, as it would else
    be slower than what people run, and it is shown by leaving it out. `needs_weights`: random ones say nothing of it.
    `stands_in_for`: a rung only where the technique of that name is none. `no_rung`: why a ladder does not climb what
    readers would look for there.
    """

    name: str
    on: Mapping[str, str]
    off: Mapping[str, str]
    sign: Sign | None = None
    is_lossy: bool = False
    is_rung: bool = True
    is_base: bool = False
    needs_weights: bool = False
    device: str | None = None  # None: any
    rung_on: str | None = None  # the device on which it brings speed; None: any
    stands_in_for: str | None = None
    no_rung: str | None = None

    def is_rung_on(self, device: str) -> bool:
        """Whether a ladder on that device climbs it."""
        return self.is_rung and self.device in (None, device) and self.rung_on in (None, device)


# Options that are lists, so that several techniques have a place in one.
LISTS = frozenset({"gateway"})

TECHNIQUES = (
    Technique(
        name="continuous batching",
        on={"batching": "continuous"},
        off={"batching": "static:size=32"},
        sign=Sign(figure="nonet_late_joins", words="requests joined a running batch"),
    ),
    Technique(
        name="paged KV",
        on={"kv_reservation": "paged"},
        off={"kv_reservation": "worst_case"},
        sign=Sign(figure="nonet_kv_blocks_peak", words="KV blocks held at most", is_less=True),
    ),
    Technique(
        name="native kernels",
        on={"kernels": "native"},
        off={"kernels": "padded"},
        device="cpu",
    ),
    Technique(
        name="flash attention",
        on={"kernels": "flash"},
        off={"kernels": "padded"},
        device="cuda",
    ),
    Technique(
        name="Triton kernels",
        on={"kernels": "triton"},
        off={"kernels": "padded"},
        device="cuda",
    ),
    Technique(
        name="recorded forward pass",
        on={"recording": "true"},
        off={"recording": "false"},
        sign=Sign(figure="nonet_recorded_steps", words="steps replayed the recording"),
        device="cpu",
    ),
    Technique(
        name="CUDA graphs",
        on={"recording": "true"},
        off={"recording": "false"},
        sign=Sign(figure="nonet_recorded_steps", words="steps replayed a graph"),
        is_base=True,
        device="cuda",
    ),
    Technique(
        name="chunked prefill",
        on={"chunked_prefill": "true"},
        off={"chunked_prefill": "false"},
        sign=Sign(figure="nonet_partial_prefills", words="pieces of prompts"),
    ),
    Technique(
        name="overlap",
        on={"overlap": "true"},
        off={"overlap": "false"},
        sign=Sign(figure="nonet_overlapped_steps", words="steps planned while another ran"),
        rung_on="cuda",
    ),
    Technique(
        name="prefix cache",
        on={"prefix_cache": "true"},
        off={"prefix_cache": "false"},
        sign=Sign(
            figure="nonet_prefix_hit_tokens", words="prompt tokens taken from the prefix cache"
        ),
    ),
    Technique(name="deadlines", on={"policy": "slo"}, off={"policy": "fcfs"}, is_rung=False),
    Technique(name="preemption", on={}, off={}, is_rung=False),
    Technique(
        name="determinism",
        on={"deterministic": "true"},
        off={"deterministic": "false"},
        is_rung=False,
    ),
    Technique(
        name="weights as in the file",
        on={"weight_format": "native"},
        off={"weight_format": "dense"},
        sign=Sign(figure="weight_bytes", words="bytes of weights", is_less=True),
        is_lossy=True,
        needs_weights=True,
        device="cpu",
    ),
    Technique(
        name="FP8 weights",
        on={"weight_format": "fp8"},
        off={"weight_format": "dense"},
        sign=Sign(figure="weight_bytes", words="bytes of weights", is_less=True),
        is_lossy=True,
        device="cuda",
    ),
    Technique(
        name="INT8 weights",
        on={"weight_format": "int8"},
        off={"weight_format": "dense"},
        sign=Sign(figure="weight_bytes", words="bytes of weights", is_less=True),
        is_lossy=True,
        rung_on="cpu",
        stands_in_for="weights as in the file",
    ),
    Technique(
        name="INT4 weights",
        on={"weight_format": "int4"},
        off={"weight_format": "dense"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(
        name="INT8 weights and activations",
        on={"weight_format": "w8a8"},
        off={"weight_format": "dense"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(
        name="INT8 KV",
        on={"kv_format": "int8"},
        off={"kv_format": "auto"},
        sign=Sign(figure="kv_bytes_per_block", words="bytes of a KV block", is_less=True),
        is_lossy=True,
    ),
    Technique(
        name="FP8 KV",
        on={"kv_format": "fp8"},
        off={"kv_format": "auto"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(
        name="prompt lookup",
        on={"speculate": "prompt_lookup"},
        off={"speculate": "none"},
        sign=Sign(figure="nonet_accepted_tokens", words="drafted tokens stood"),
        needs_weights=True,
    ),
    Technique(
        name="draft model",
        on={"speculate": "draft_model"},
        off={"speculate": "none"},
        is_rung=False,
        needs_weights=True,
    ),
    Technique(
        name="SnapKV",
        on={"kv_prune": "snapkv:window=16,budget=256"},
        off={"kv_prune": "none"},
        sign=Sign(figure="nonet_compactions", words="caches pruned"),
        is_lossy=True,
    ),
    Technique(
        name="recent-only KV",
        on={"kv_prune": "recent"},
        off={"kv_prune": "none"},
        is_lossy=True,
        is_rung=False,
    ),
    Technique(name="grammars", on={}, off={}, is_rung=False),
    Technique(
        name="LoRA", on={"lora_modules": "NAME=DIRECTORY"}, off={"lora_modules": ""}, is_rung=False
    ),
    Technique(
        name="exact cache",
        on={"gateway": "exact_cache"},
        off={"gateway": ""},
        sign=Sign(figure="answers:exact", words="answers from the exact cache"),
    ),
    Technique(
        name="semantic cache",
        on={"gateway": "semantic_cache"},
        off={"gateway": ""},
        is_lossy=True,
        is_rung=False,
        no_rung="it serves nothing before some four hundred verified hits, more than a ladder's requests; "
        "benchmarks/semantic_cache.py measures it",
    ),
)


def added(settings: Mapping[str, str], on: Mapping[str, str]) -> dict[str, str]:
    """`settings` with a technique's options on top; an option that is a list gets one more entry.

    >>> added({"gateway": "ledger"}, {"gateway": "exact_cache"})
    {'gateway': 'ledger,exact_cache'}
    """
    together = dict(settings)
    for name, value in on.items():
        before = settings.get(name) if name in LISTS else None
        together[name] = f"{before},{value}" if before and value else value or before or ""
    return together


def taken_away(
    settings: Mapping[str, str], on: Mapping[str, str], off: Mapping[str, str]
) -> dict[str, str]:
    """`settings` without what `added` put there.

    >>> taken_away({"gateway": "ledger,exact_cache"}, {"gateway": "exact_cache"}, {"gateway": ""})
    {'gateway': 'ledger'}
    """
    rest = {**settings, **off}
    for name in LISTS & on.keys():
        kept = [one for one in settings.get(name, "").split(",") if one != on[name]]
        rest[name] = ",".join(kept)
    return rest


def conflict_between(first: Technique, second: Technique) -> Conflict | None:
    """Why the two cannot be on together; None when they can. Options that both set must agree."""
    for name in first.on.keys() & second.on.keys():
        if name not in LISTS and first.on[name] != second.on[name]:
            values = f"{first.on[name]} and {second.on[name]}"
            return Conflict(
                (name, first.on[name]),
                (name, second.on[name]),
                f"{name} has one value, {values} are two",
                "choose one",
            )
    both = {name: value.partition(":")[0] for name, value in {**first.on, **second.on}.items()}
    return find_conflict(both)


def matrix() -> str:
    """The compatibility page: one line for each pair that excludes each other, and the table of all."""
    names = [technique.name for technique in TECHNIQUES]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    reasons = []
    for row, first in enumerate(TECHNIQUES):
        cells = []
        for column, second in enumerate(TECHNIQUES):
            conflict = conflict_between(first, second)
            cells.append("" if column == row else "no" if conflict else "yes")
            if conflict and column > row:
                reasons.append(
                    f"- {first.name} and {second.name}: {conflict.reason}; {conflict.remedy}."
                )
        lines.append(f"| {first.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Pairs that exclude each other:", "", *reasons, ""])
