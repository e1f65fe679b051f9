"""How sure is it that an answer fits, given how alike two questions are? Each entry learns its threshold from trials.

A trial is a question that was answered by the model and by the entry: its similarity, and whether the two answers were
the same. As in vCache (arXiv 2502.03771) an answer fits with probability sigma(gamma * (similarity - threshold)), with
a threshold and a steepness of each entry's own. Where the paper fits both and moves the threshold up by its standard
error, here the posterior over a grid of both is kept and averaged over, so a few trials that went well are never taken
for certainty. Its prior is what the other entries of the partition were found to be like, mixed with `BASE` imagined
entries that know nothing: new entries profit from old ones, and no sooner than there are many of them. The average is
bounded for each answer that is served, which is stricter than the paper's bound over all requests.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Belief", "Pool", "false_chance"]

Grid = npt.NDArray[np.float32]

THRESHOLDS = np.arange(
    0.50, 1.17, 0.02, dtype=np.float32
)  # above 1: what not even an equal text earns
STEEPNESS = np.array([8, 16, 32, 64, 128], np.float32)
BASE = 12.0  # imagined entries, evenly over the grid
CELLS = len(THRESHOLDS) * len(STEEPNESS)


class Pool:
    """What the entries of one partition are like: how many of them, in expectation, are in each cell of the grid."""

    def __init__(self) -> None:
        self._counts = np.full(CELLS, BASE / CELLS, np.float64)

    def log_prior(self) -> Grid:
        shares = self._counts / self._counts.sum()
        logs: Grid = np.log(np.maximum(shares, 1e-12)).astype(np.float32)
        return logs

    def move(self, old: Grid | None, new: Grid | None) -> None:
        """An entry's share of the cells changes: one step of incremental EM."""
        if old is not None:
            self._counts -= old
        if new is not None:
            self._counts += new


class Belief:
    """What one entry's trials say about it. It has a part in the pool from its first trial on."""

    def __init__(self, trials: Iterable[tuple[float, bool]], pool: Pool) -> None:
        self.log_likelihood = np.zeros(CELLS, np.float32)
        self._share: Grid | None = None
        for similarity, is_right in trials:
            self.learn(similarity, is_right, pool)

    def learn(self, similarity: float, is_right: bool, pool: Pool) -> None:
        margin = _margin(similarity)
        self.log_likelihood -= np.logaddexp(np.float32(0), -margin if is_right else margin)
        share = self._posterior(pool)
        pool.move(self._share, share)
        self._share = share

    def forget(self, pool: Pool) -> None:
        """The entry is gone; what it taught about others goes with it."""
        pool.move(self._share, None)
        self._share = None

    def false_chance(self, similarity: float, pool: Pool) -> float:
        """How likely it is that the entry's answer to a question so alike would be wrong."""
        return false_chance(self._posterior(pool), similarity)

    def _posterior(self, pool: Pool) -> Grid:
        weights = self.log_likelihood + pool.log_prior()
        weights = np.exp(weights - weights.max())
        posterior: Grid = weights / weights.sum()
        return posterior


def false_chance(posterior: Grid, similarity: float) -> float:
    """The average over all that the entry may be like."""
    return float(posterior @ (1 / (1 + np.exp(_margin(similarity)))))


def _margin(similarity: float) -> Grid:
    margin: Grid = np.multiply.outer(STEEPNESS, np.float32(similarity) - THRESHOLDS).reshape(-1)
    return margin
