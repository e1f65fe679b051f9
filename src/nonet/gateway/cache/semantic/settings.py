"""What an operator sets of the semantic cache."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.errors import ConfigError
from nonet.gateway.cache.semantic.gates import GATES, LEARNING_GATES

__all__ = ["ALL_GATES", "Settings"]

ALL_GATES = frozenset(GATES) | LEARNING_GATES


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of the spec string, as in semantic_cache:delta=0.02,shadow=0.1."""

    delta: float = 0.01  # most false hits, as a share of the hits
    confidence: float = 0.95  # of the proof before the first hit
    shadow: float = 0.05  # share of the hits that the model answers too, for ever
    min_similarity: float = 0.7  # below it nothing is compared
    same_answer: float = 0.9  # how alike two answers must sound to be the same
    gates: str = "all"  # or some of them, joined by +
    with_tools: bool = False  # serve asks that carry tools
    embedder: str = "minilm"
    max_entries: int = 50_000
    exact_up_to: int = 50_000  # entries of a partition that are all compared; usearch above
    ttl_s: float = 86400.0
    memory_mib: float = 64.0
    disk_mib: float = 1024.0  # needs a data_dir; 0 keeps everything in memory only
    max_entry_mib: float = 1.0

    def __post_init__(self) -> None:
        for name in ("delta", "confidence", "shadow"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(
                    f"semantic_cache: {name} is {value:g}; give a number between 0 and 1"
                )
        for name in ("min_similarity", "same_answer"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"semantic_cache: {name} is {value:g}; give a number from 0 to 1")
        for name in ("max_entries", "exact_up_to", "ttl_s", "memory_mib", "max_entry_mib"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"semantic_cache: {name} is {value:g}; give a number above 0")
        if not self.disk_mib >= 0:
            raise ConfigError(
                f"semantic_cache: disk_mib is {self.disk_mib:g}; give 0 or a number above it"
            )
        unknown = self.chosen_gates - ALL_GATES
        if unknown:
            raise ConfigError(
                f"semantic_cache: there is no gate {min(unknown)!r}; "
                f"give all, or some of {'+'.join(sorted(ALL_GATES))}"
            )

    @property
    def chosen_gates(self) -> frozenset[str]:
        return ALL_GATES if self.gates == "all" else frozenset(self.gates.split("+"))
