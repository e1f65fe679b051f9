"""SnapKV: the end of the prompt tells which of its tokens will be read.

Idea: the last `window` queries attend over the whole prompt; what they attend to is what generation will attend to. For
each query head their softmax weights are summed, averaged over the query heads of a KV head and pooled along the prompt
(so that neighbours of an important token stay with it); each KV head keeps its own best entries, and the window itself.
The paper's code repeats keys to every query head and selects per query head, which would undo what grouped heads save.
Reference: arXiv 2404.14469.
Cost: once per prompt, `window` rows of attention scores per layer; memory for the whole prompt until then.
Good for: long prompts with short answers, where reading the cache is what decoding waits for.
Conflicts: lossy: a later question about what the window did not ask for may find it gone. Nothing of a sequence is
published to the prefix cache once it is pruned; the window is computed anew on every prefix hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from nonet.core.errors import ConfigError
from nonet.kv.prune.base import LayerView, Needs

__all__ = ["SnapKV"]

Pool = Literal["avg", "max"]
MOST_SCORES = 1 << 26  # attention scores held at a time, in float32


class SnapKV:
    """Observation-window scores, pooled.

    >>> SnapKV(SnapKV.Config(budget=64, window=16)).needs
    Needs(budget=64, query_window=16)
    """

    @dataclass(frozen=True, slots=True)
    class Config:
        budget: int = 1024  # entries that each KV head keeps, the window included
        window: int = 32  # last tokens of the prompt whose queries are asked
        kernel: int = 7  # entries that are pooled together, an odd number; 1: none
        pool: Pool = "avg"  # avg or max

        def __post_init__(self) -> None:
            if not 1 <= self.window < self.budget:
                raise ConfigError(
                    f"KV pruner 'snapkv': window is {self.window} and budget {self.budget}; "
                    "give a window of at least 1 and a larger budget"
                )
            if self.kernel < 1 or self.kernel % 2 == 0:
                raise ConfigError(
                    f"KV pruner 'snapkv': kernel is {self.kernel}; give an odd number"
                )
            if self.pool not in get_args(Pool):
                raise ConfigError(f"KV pruner 'snapkv': pool is {self.pool!r}; give avg or max")

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def needs(self) -> Needs:
        return Needs(budget=self._config.budget, query_window=self._config.window)

    def score(self, view: LayerView) -> torch.Tensor:
        config, window = self._config, len(view.queries)
        weights = window_weights(view)[:, :-window]
        pool = F.avg_pool1d if config.pool == "avg" else F.max_pool1d
        pooled = pool(weights, config.kernel, stride=1, padding=config.kernel // 2)
        return F.pad(pooled, (0, window), value=torch.inf)


def window_weights(view: LayerView) -> torch.Tensor:
    """[K, L]: the attention of the window's queries to each entry, summed over them and averaged over query heads."""
    kv_heads, dim = view.layout.num_kv_heads, view.layout.head_dim
    window, length = len(view.queries), len(view.positions)
    queries = (view.queries.float() * view.scale).view(window, kv_heads, -1, dim)
    rows = queries.permute(1, 2, 0, 3).flatten(1, 2)  # [K, group * window, D]
    keys = view.read()[0].permute(1, 2, 0)  # [K, D, L]
    unseen = torch.ones(window, window, dtype=torch.bool, device=keys.device).triu(1)
    parts: list[torch.Tensor] = []
    heads_at_once = max(1, MOST_SCORES // (rows.shape[1] * length))
    for first in range(0, kv_heads, heads_at_once):
        some = slice(first, first + heads_at_once)
        scores = torch.bmm(rows[some], keys[some])
        if view.softcap is not None:
            scores = view.softcap * torch.tanh(scores / view.softcap)
        by_query = scores.view(len(scores), -1, window, length)
        by_query[..., -window:].masked_fill_(unseen, -torch.inf)
        parts.append(scores.softmax(-1).sum(1) / queries.shape[2])
    return torch.cat(parts)
