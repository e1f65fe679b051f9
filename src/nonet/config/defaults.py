"""Sizes that depend on the device alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULTS", "Defaults"]


@dataclass(frozen=True, slots=True)
class Defaults:
    """Sizes that depend on the device only, with the reason for each."""

    block_size: int
    max_num_seqs: int
    max_tokens_per_step: int
    memory_fraction: float
    reasons: dict[str, str]


DEFAULTS = {
    "cpu": Defaults(
        block_size=16,
        max_num_seqs=64,
        max_tokens_per_step=512,
        memory_fraction=0.5,
        reasons={
            "block_size": "the least that the kernels take, so the last block of a sequence wastes least",
            "max_num_seqs": "on a CPU matrix products gain little from more rows",
            "max_tokens_per_step": "a step stays under about a second, so running streams are not held up",
            "memory_fraction": "half of the free memory: other programs share it",
        },
    ),
    "cuda": Defaults(
        block_size=64,
        max_num_seqs=256,
        max_tokens_per_step=8192,
        memory_fraction=0.9,
        reasons={
            "block_size": "attention reads longer runs of a sequence at a time than with small blocks",
            "max_num_seqs": "decode is bound by reading the weights, which all sequences of a step share",
            "max_tokens_per_step": "enough tokens to be bound by arithmetic, in tens of milliseconds",
            "memory_fraction": "nine tenths of the free memory: this model has the GPU to itself",
        },
    ),
}  # fmt: skip
