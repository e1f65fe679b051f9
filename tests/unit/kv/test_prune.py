"""Which entries stay: SnapKV against the paper written out in plain loops, with mutants, and the baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.kernels.ops import QKVLayout
from nonet.kv.prune import PRUNERS, snapkv
from nonet.kv.prune.base import LayersView, Needs
from nonet.kv.prune.recent import RecentOnly
from nonet.kv.prune.snapkv import SnapKV
from nonet.runner.compactor import best_entries

HEADS, KV_HEADS, DIM, LENGTH, WINDOW, BUDGET, KERNEL = 6, 2, 16, 61, 7, 24, 5
GROUP = HEADS // KV_HEADS
Selection = list[list[int]]


def made_up(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [L, H, D] and keys [L, K, D], some keys larger than others so that attention is uneven."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(LENGTH, HEADS, DIM, generator=generator)
    keys = torch.randn(LENGTH, KV_HEADS, DIM, generator=generator)
    return queries, keys * torch.rand(LENGTH, KV_HEADS, 1, generator=generator) * 3


def view_of(
    queries: list[torch.Tensor], keys: list[torch.Tensor], softcap: float | None = None
) -> LayersView:
    """A layer for each of the queries."""

    def values() -> torch.Tensor:
        raise AssertionError("no pruner here has a use for values")

    return LayersView(
        layers=tuple(range(len(keys))),
        layout=QKVLayout(HEADS, KV_HEADS, DIM),
        positions=torch.arange(len(keys[0]), device=keys[0].device),
        queries=torch.stack(queries)[:, -WINDOW:],
        scale=DIM**-0.5,
        softcap=softcap,
        read_keys=lambda: torch.stack(keys).transpose(1, 2),
        read_values=values,
    )


def chosen(
    pool: str, queries: torch.Tensor, keys: torch.Tensor, softcap: float | None = None
) -> Selection:
    config = SnapKV.Config(budget=BUDGET, window=WINDOW, kernel=KERNEL, pool=pool)  # type: ignore[arg-type]
    scores = SnapKV(config).score(view_of([queries], [keys], softcap))
    assert scores.shape == (1, KV_HEADS, LENGTH)
    kept: Selection = best_entries(scores, BUDGET)[0].tolist()
    return kept


class Written:
    """Section 4 of the paper, one number at a time; heads that share keys are averaged. Mutants change one method."""

    def __init__(self, pool: str, softcap: float | None = None) -> None:
        self.pool = pool
        self.softcap = softcap

    def select(self, queries: torch.Tensor, keys: torch.Tensor) -> Selection:
        q, k = queries.double().numpy(), keys.double().numpy()
        return [self.kept(self.pooled(self.votes(q, k, head))) for head in range(KV_HEADS)]

    def votes(self, q: np.ndarray, k: np.ndarray, kv_head: int) -> list[float]:
        """Softmax weights of the last queries, summed, averaged over the heads that read this KV head."""
        total = np.zeros(LENGTH)
        for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
            for at in range(LENGTH - WINDOW, LENGTH):
                total += self.weights(q[at, head], k[:, kv_head], at) / GROUP
        return list(total)

    def weights(self, query: np.ndarray, keys: np.ndarray, at: int) -> np.ndarray:
        scores = keys @ query * DIM**-0.5
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        powers = np.where(np.arange(LENGTH) <= self.last_seen(at), np.exp(scores), 0.0)
        return powers / powers.sum()

    def last_seen(self, at: int) -> int:
        return at

    def pooled(self, votes: list[float]) -> list[float]:
        before = votes[: self.pooled_length()]
        around = [self.around(before, at) for at in range(LENGTH - WINDOW)]
        return [sum(some) / KERNEL if self.pool == "avg" else max(some) for some in around]

    def pooled_length(self) -> int:
        return LENGTH - WINDOW

    def around(self, votes: list[float], at: int) -> list[float]:
        return votes[max(0, at - KERNEL // 2) : at + KERNEL // 2 + 1]

    def kept(self, scores: list[float]) -> list[int]:
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        return sorted([*order[: BUDGET - WINDOW], *range(LENGTH - WINDOW, LENGTH)])


class NoPool(Written):
    def around(self, votes: list[float], at: int) -> list[float]:
        return [votes[at]]


class PoolOffByOne(Written):
    def around(self, votes: list[float], at: int) -> list[float]:
        return votes[max(0, at - KERNEL // 2 + 1) : at + KERNEL // 2 + 2]


class PoolReachesIntoTheWindow(Written):
    def pooled_length(self) -> int:
        return LENGTH


class WindowNotAlwaysKept(Written):
    def kept(self, scores: list[float]) -> list[int]:
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        return sorted(order[:BUDGET])


class BudgetBesideTheWindow(Written):
    def kept(self, scores: list[float]) -> list[int]:
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        return sorted([*order[:BUDGET], *range(LENGTH - WINDOW, LENGTH)])


class SameForAllHeads(Written):
    def select(self, queries: torch.Tensor, keys: torch.Tensor) -> Selection:
        q, k = queries.double().numpy(), keys.double().numpy()
        both = [self.votes(q, k, head) for head in range(KV_HEADS)]
        return [self.kept(self.pooled([sum(some) for some in zip(*both, strict=True)]))] * KV_HEADS


class NotCausal(Written):
    def last_seen(self, at: int) -> int:
        return LENGTH


class Unnormed(Written):
    def weights(self, query: np.ndarray, keys: np.ndarray, at: int) -> np.ndarray:
        return keys @ query * DIM**-0.5


class QueriesAveragedFirst(Written):
    def votes(self, q: np.ndarray, k: np.ndarray, kv_head: int) -> list[float]:
        """One mean query for the heads that share keys, instead of the mean of their weights."""
        mean = q[:, kv_head * GROUP : (kv_head + 1) * GROUP].mean(1)
        rows = range(LENGTH - WINDOW, LENGTH)
        return list(sum(self.weights(mean[at], k[:, kv_head], at) for at in rows))  # type: ignore[arg-type]


class WrongGroup(Written):
    """Query head h reads KV head h % K."""

    def votes(self, q: np.ndarray, k: np.ndarray, kv_head: int) -> list[float]:
        total = np.zeros(LENGTH)
        for head in range(kv_head, HEADS, KV_HEADS):
            for at in range(LENGTH - WINDOW, LENGTH):
                total += self.weights(q[at, head], k[:, kv_head], at)
        return list(total)


MUTANTS: list[type[Written]] = [
    NoPool, PoolOffByOne, PoolReachesIntoTheWindow, WindowNotAlwaysKept, BudgetBesideTheWindow, SameForAllHeads,
    NotCausal, Unnormed, QueriesAveragedFirst, WrongGroup,
]  # fmt: skip


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_paper_in_loops_agrees(pool: str, softcap: float | None, seed: int) -> None:
    queries, keys = made_up(seed)
    assert chosen(pool, queries, keys, softcap) == Written(pool, softcap).select(queries, keys)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_disagrees(mutant: type[Written]) -> None:
    differ = 0
    for seed in range(8):
        queries, keys = made_up(seed)
        differ += chosen("avg", queries, keys) != mutant("avg").select(queries, keys)
    assert differ, f"{mutant.__name__} went unnoticed"


def test_heads_in_parts_score_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts are scored some heads at a time; the smallest bound takes them one by one."""
    queries, keys = made_up(0)
    config = SnapKV.Config(budget=BUDGET, window=WINDOW)
    whole = SnapKV(config).score(view_of([queries], [keys]))
    monkeypatch.setitem(snapkv.MOST_SCORES, "cpu", 1)
    assert torch.allclose(SnapKV(config).score(view_of([queries], [keys])), whole, rtol=1e-5)


def test_layers_together_score_as_each_alone() -> None:
    queries, keys = map(list, zip(*(made_up(seed) for seed in range(3)), strict=True))
    pruner = SnapKV(SnapKV.Config(budget=BUDGET, window=WINDOW, kernel=KERNEL))
    together = pruner.score(view_of(queries, keys))
    for layer, mine in enumerate(zip(queries, keys, strict=True)):
        alone = pruner.score(view_of([mine[0]], [mine[1]]))[0]
        assert torch.allclose(together[layer], alone, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], rtol=0.1), "no two layers are alike"


def test_recent_keeps_the_end_and_the_sinks() -> None:
    queries, keys = made_up(0)
    view = view_of([queries] * 2, [keys] * 2)
    for sinks in (0, 3):
        scores = RecentOnly(RecentOnly.Config(budget=10, sinks=sinks)).score(view)
        expected = [*range(sinks), *range(LENGTH - 10 + sinks, LENGTH)]
        assert best_entries(scores, 10).tolist() == [[expected] * KV_HEADS] * 2


def test_of_equal_scores_the_first_stay() -> None:
    scores = torch.zeros(2, 300)
    scores[1, 250] = 1
    assert best_entries(scores, 3).tolist() == [[0, 1, 2], [0, 1, 250]]


def sorted_entries(scores: torch.Tensor, count: int) -> torch.Tensor:
    """What stays, by sorting everything."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(-1).values


def highest_of_topk(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mutant: which of its equals torch takes is left to torch."""
    return scores.topk(count, dim=-1).indices.sort(-1).values


def last_of_equals(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mutant."""
    length = scores.shape[-1]
    return (length - 1 - sorted_entries(scores.flip(-1), count)).flip(-1)


def few_values(seed: int) -> torch.Tensor:
    """Scores [3, 2, 400] of some ten values, with infinite ones."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-4, 5, (3, 2, 400), generator=generator).float()
    return scores.masked_fill_(torch.rand(3, 2, 400, generator=generator) < 0.02, torch.inf)


@pytest.mark.parametrize("count", [1, 7, 100, 399, 400])
def test_what_stays_is_what_a_stable_sort_puts_first(count: int) -> None:
    for seed in range(5):
        scores = few_values(seed)
        assert torch.equal(best_entries(scores, count), sorted_entries(scores, count))


@pytest.mark.parametrize("mutant", [highest_of_topk, last_of_equals])
def test_another_choice_among_equals_is_seen(
    mutant: Callable[[torch.Tensor, int], torch.Tensor],
) -> None:
    pairs = [(mutant(few_values(seed), 100), sorted_entries(few_values(seed), 100)) for seed in range(5)]  # fmt: skip
    assert not all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize("num_nan", [1, 3, 5, 6, 12])
def test_scores_that_are_no_numbers_choose_entries_too(num_nan: int) -> None:
    """A broken sequence must not make a kernel read outside the cache."""
    scores = torch.rand(1, 2, 12)
    scores[0, 1, :num_nan] = torch.nan
    kept = best_entries(scores, 5)
    assert torch.equal(kept[0, 0], sorted_entries(scores[0, 0], 5))
    assert int(kept.min()) >= 0
    assert int(kept.max()) < 12
    assert bool((kept.diff() > 0).all())


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def rounded_products(rows: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """A mutant: sums of products leave the multiplication in the dtype of the cache."""
    return torch.bmm(rows, keys.mT).float() * scale


def share_chosen_otherwise(dtype: torch.dtype, device: str) -> float:
    """Of 6 x 400 entries, when numbers that `dtype` holds are given in it instead of in float32."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, WINDOW, HEADS, DIM, generator=generator).to(device, dtype)
    keys = torch.randn(3, 4000, KV_HEADS, DIM, generator=generator).to(device, dtype)
    pruner = SnapKV(SnapKV.Config(budget=400, window=WINDOW, kernel=1))
    short, wide = (
        best_entries(pruner.score(view_of(list(q), list(k))), 400).flatten(0, 1).tolist()
        for q, k in ((queries, keys), (queries.float(), keys.float()))
    )
    differ = [len(set(one) - set(other)) for one, other in zip(short, wide, strict=True)]
    return sum(differ) / (400 * len(differ))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_choose_what_float32_chooses(dtype: torch.dtype, device: str) -> None:
    """The cache's own precision costs nothing: products are summed in float32, if in another order."""
    assert share_chosen_otherwise(dtype, device) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_rounded_products_would_choose_others(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapkv, "_products", rounded_products)
    share = share_chosen_otherwise(torch.bfloat16, device)
    assert share > 2e-3


def test_spec_strings() -> None:
    pruner = PRUNERS.build("snapkv:window=8,budget=64,pool=max,kernel=3")
    assert pruner.needs == Needs(budget=64, query_window=8)
    assert PRUNERS.build("recent:budget=7").needs == Needs(budget=7, query_window=0)
    assert PRUNERS.build("snapkv").needs == Needs(budget=1024, query_window=32)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("snapvk", UnknownNameError, "no KV pruner named 'snapvk'. Did you mean 'snapkv'?"),
        ("snapkv:size=3", UnknownNameError, "no option 'size'"),
        ("snapkv:window=64,budget=64", ConfigError, "a window of at least 1 and a larger budget"),
        ("snapkv:window=0", ConfigError, "window is 0"),
        ("snapkv:kernel=4", ConfigError, "give an odd number"),
        ("snapkv:pool=sum", ConfigError, "give avg or max"),
        ("recent:budget=4", ConfigError, "sinks is 4 and budget 4"),
    ],
)
def test_what_is_refused(spec: str, error: type[Exception], says: str) -> None:
    build: Callable[[str], object] = PRUNERS.build
    with pytest.raises(error, match=says.replace("?", r"\?")):
        build(spec)
