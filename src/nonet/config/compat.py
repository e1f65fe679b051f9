"""Pairs of values that exclude each other, as data: the start-up error and the documented matrix are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.core.errors import ConfigError

__all__ = ["CONFLICTS", "Conflict", "find_conflict", "refuse_conflicts", "refuse_kv_format"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two options that cannot have these values together."""

    first: tuple[str, object]
    second: tuple[str, object]
    reason: str
    remedy: str


CONFLICTS = (
    Conflict(
        ("dtype", "float16"),
        ("kernels", "native"),
        "the native CPU kernels are written for float32 and bfloat16",
        "use dtype bfloat16, or kernels reference",
    ),
    Conflict(
        ("device", "cuda"),
        ("kernels", "native"),
        "the native kernels run on the CPU only",
        "use kernels auto, or device cpu",
    ),
    Conflict(
        ("device", "cpu"),
        ("kernels", "triton"),
        "Triton kernels run on a GPU only",
        "use kernels auto, or device cuda",
    ),
    Conflict(
        ("device", "cpu"),
        ("kernels", "flash"),
        "its attention is a Triton kernel, which runs on a GPU only",
        "use kernels auto or padded, or device cuda",
    ),
    Conflict(
        ("weight_format", "fp8"),
        ("kernels", "native"),
        "the native CPU kernels have no 8-bit floats",
        "use kernels auto or reference, or weight_format int8",
    ),
    Conflict(
        ("weight_form", "float8"),
        ("kernels", "native"),
        "the checkpoint holds 8-bit floats, which the native CPU kernels have not",
        "use kernels auto or reference, or weight_format dense or int8",
    ),
    Conflict(
        ("weight_form", "integers_by_group"),
        ("kernels", "triton"),
        "weight_format w8a8 with a group gives an output several scales, and the Triton kernels multiply integers "
        "under one",
        "use weight_format w8a8 without a group, or kernels auto, padded or flash",
    ),
    *(
        Conflict(
            ("deterministic", "true"),
            ("kernels", kernels),
            f"the {kernels} kernels multiply through torch, whose order of sums follows the size of a step",
            "use kernels native on a CPU or triton on a GPU",
        )
        for kernels in ("reference", "padded", "flash")
    ),
    Conflict(
        ("deterministic", "true"),
        ("speculate", "draft_model"),
        "a token drawn at random is another one where it was drafted, and how many are drafted follows the load",
        "use speculate prompt_lookup",
    ),
    *(
        Conflict(
            ("speculate", "draft_model"),
            ("kv_prune", pruner),
            "the draft model reads its KV through the target's block tables, and pruning moves their entries",
            "use speculate prompt_lookup",
        )
        for pruner in ("recent", "snapkv")
    ),
)


def find_conflict(values: Mapping[str, object]) -> Conflict | None:
    """The first excluded pair among `values` (option name to resolved value, a spec string by its name alone)."""
    for row in CONFLICTS:
        if all(values.get(name) == value for name, value in (row.first, row.second)):
            return row
    return None


def refuse_conflicts(values: Mapping[str, object]) -> None:
    """Raise ConfigError for the first excluded pair."""
    row = find_conflict(values)
    if row is not None:
        given = " and ".join(f"{name} {value}" for name, value in (row.first, row.second))
        raise ConfigError(f"{given} exclude each other: {row.reason}; {row.remedy}")


def refuse_kv_format(name: str, known_to: tuple[str, ...], kernels: str) -> None:
    """Raise ConfigError where `kernels` is not among the implementations that hold a KV format."""
    if kernels not in known_to:
        raise ConfigError(
            f"kv_format is {name}, which the {kernels} kernels do not hold; "
            f"use kernels {' or '.join(known_to)}, or another kv_format"
        )
