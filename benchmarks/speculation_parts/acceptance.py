"""How often drafts stood, beside the chance that theory gives each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nonet.sampling import sampler
from nonet.sampling.acceptance.rejection import accept

__all__ = ["Acceptance"]


class Acceptance:
    """Watches the rejection rule: for each draft that was reached, whether it stood and the chance that it had."""

    def __init__(self) -> None:
        self.chances: list[float] = []
        self.stood: list[bool] = []

    @classmethod
    @contextmanager
    def watched(cls) -> Iterator[Acceptance]:
        found = cls()
        sampler.accept = found  # type: ignore[assignment]
        try:
            yield found
        finally:
            sampler.accept = accept

    def __call__(
        self,
        target: torch.Tensor,
        draft: torch.Tensor,
        draft_ids: torch.Tensor,
        *uniforms: torch.Tensor,
    ) -> torch.Tensor:
        chosen = accept(target, draft, draft_ids, *uniforms)
        chances = torch.minimum(target, draft).double().sum(-1).tolist()
        for chance, is_right in zip(chances, (chosen == draft_ids).tolist(), strict=True):
            self.chances.append(chance)
            self.stood.append(is_right)
            if not is_right:
                break  # later drafts of the run are thrown away
        return chosen

    def summary(self) -> dict[str, float]:
        if not self.chances:
            return {"verified": 0}
        spread = math.sqrt(sum(one * (1 - one) for one in self.chances))
        expected, stood = sum(self.chances), sum(self.stood)
        return {
            "verified": len(self.chances),
            "acceptance": round(stood / len(self.chances), 4),
            "sum_of_min": round(expected / len(self.chances), 4),
            "standard_deviations_apart": round((stood - expected) / spread, 2) if spread else 0.0,
        }
