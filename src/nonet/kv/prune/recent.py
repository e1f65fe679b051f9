"""Keep the newest entries, and a few of the first.

Idea: what was read last matters most, whatever it says. The first tokens of a text draw much attention though they
carry no meaning ("attention sinks"), so a few of them stay too. Unlike StreamingLLM, entries keep their positions.
Reference: the baseline that pruning techniques are measured against; sinks as in arXiv 2309.17453.
Cost: none but the copy of what stays.
Good for: comparing; texts of which only the end matters.
Conflicts: none of its own; lossy, so a sequence publishes nothing to the prefix cache once it is pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.core.errors import ConfigError
from nonet.kv.prune.base import LayersView, Needs

__all__ = ["RecentOnly"]


class RecentOnly:
    """Scores are positions.

    >>> RecentOnly(RecentOnly.Config(budget=64)).needs
    Needs(budget=64, query_window=0)
    """

    @dataclass(frozen=True, slots=True)
    class Config:
        budget: int = 1024  # entries that each KV head keeps
        sinks: int = 4  # of them the first of the text

        def __post_init__(self) -> None:
            if not 0 <= self.sinks < self.budget:
                raise ConfigError(
                    f"KV pruner 'recent': sinks is {self.sinks} and budget {self.budget}; "
                    "give 0 or more sinks and a larger budget"
                )

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def needs(self) -> Needs:
        return Needs(budget=self._config.budget)

    def score(self, view: LayersView) -> torch.Tensor:
        scores = view.positions.float()
        scores[: self._config.sinks] = torch.inf
        return scores.expand(len(view.layers), view.layout.num_kv_heads, -1)
