"""SnapKV: the end of the prompt tells which of its tokens will be read.

Idea: the last `window` queries attend over the whole prompt; what they attend to is what generation will attend to.
Their softmax weights are summed over the queries and over the query heads of a KV head, and pooled along the prompt (so
that neighbours of an important token stay with it); each KV head keeps its own best entries, and the window itself.
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
from nonet.kv.prune.base import LayersView, Needs

__all__ = ["SnapKV"]

Pool = Literal["avg", "max"]
# Attention scores held at a time, in float32: on a CPU what its caches hold, as softmax reads what was just written.
MOST_SCORES = {"cpu": 1 << 22, "cuda": 1 << 25}


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

    def score(self, view: LayersView) -> torch.Tensor:
        config, window = self._config, view.queries.shape[1]
        weights = window_weights(view)[..., :-window]
        pool = F.avg_pool1d if config.pool == "avg" else F.max_pool1d
        pooled = pool(weights.flatten(0, 1), config.kernel, stride=1, padding=config.kernel // 2)
        return F.pad(pooled.view_as(weights), (0, window), value=torch.inf)


def window_weights(view: LayersView) -> torch.Tensor:
    """[C, K, L]: the attention of the window's queries to each entry, summed over them and over the query heads."""
    kv_heads, dim = view.layout.num_kv_heads, view.layout.head_dim
    layers, window, length = len(view.layers), view.queries.shape[1], len(view.positions)
    grouped = view.queries.view(layers, window, kv_heads, -1, dim)
    rows = grouped.permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)  # [C * K, group * window, D]
    keys = view.read_keys().flatten(0, 1)  # [C * K, L, D]
    unseen = torch.ones(window, window, dtype=torch.bool, device=keys.device).triu(1)
    parts: list[torch.Tensor] = []
    heads_at_once = max(1, MOST_SCORES[keys.device.type] // (rows.shape[1] * length))
    for first in range(0, len(rows), heads_at_once):
        some = slice(first, first + heads_at_once)
        scores = _products(rows[some], keys[some], view.scale)
        if view.softcap is not None:
            scores = view.softcap * torch.tanh(scores / view.softcap)
        in_window = scores.view(len(scores), -1, window, length)[..., -window:]
        in_window.masked_fill_(unseen, -torch.inf)
        parts.append(scores.softmax(-1).sum(1))
    return torch.cat(parts).view(layers, kv_heads, length)


def _products(rows: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """float32 [n, R, L]: scale * q · k of rows [n, R, D] and keys [n, L, D], summed in float32.

    A product of two 16-bit numbers is exact in float32, so a GPU that multiplies them as they are loses nothing.
    """
    if keys.is_cuda and keys.dtype == rows.dtype and keys.dtype != torch.float32:
        return torch.bmm(rows, keys.mT, out_dtype=torch.float32).mul_(scale)
    return torch.bmm(rows.float() * scale, keys.float().mT)
