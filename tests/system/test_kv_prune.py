"""Pruned KV through the whole engine on tiny models: the tokens are the oracle's, however a request is run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import StepPlan
from nonet.engine.llm import LLM
from nonet.kv.prune import PRUNERS
from nonet.runner import compactor
from nonet.runner.batch import StepBuffers
from tests.model.families import save
from tests.system.pruned_oracle import Keep, gaps, snapkv

BUDGET, WINDOW, KERNEL = 40, 8, 5
SNAPKV = f"snapkv:budget={BUDGET},window={WINDOW},kernel={KERNEL}"
ROOMY = {
    "num_blocks": 400,
    "max_model_len": 300,
    "max_num_seqs": 8,
    "max_tokens_per_step": 512,
    "threads": 1,
}
LENGTHS = (200, 131, 90, 41, 40, 12)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
NEAR_TIE = 2e-3

Tokens = dict[str, list[int]]


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp(request.param)
    return path, save(request.param, path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("llama")
    return path, save("llama", path)


@pytest.fixture(scope="module")
def folder(llama: tuple[Path, PreTrainedModel]) -> Path:
    return llama[0]


def requests(params: SamplingParams = GREEDY) -> list[Request]:
    rng = random.Random(3)
    head = rng.choices(range(3, 199), k=max(LENGTHS))
    return [
        Request(
            request_id=f"{length}",
            prompt_ids=head[: length // 2] + rng.choices(range(3, 199), k=length - length // 2),
            params=params,
        )
        for length in LENGTHS
    ]


def serve(llm: LLM, asked: list[Request]) -> dict[str, list[SequenceDelta]]:
    deltas: dict[str, list[SequenceDelta]] = {}
    for one in asked:
        llm.engine.add(one)
    while llm.engine.has_work:
        for delta in llm.engine.step():
            deltas.setdefault(f"{delta.request_id}.{delta.index}", []).append(delta)
        llm.engine.check_integrity()
    stats = llm.engine.stats()
    assert stats.blocks_free == stats.blocks_total
    return deltas


def tokens_of(deltas: dict[str, list[SequenceDelta]]) -> Tokens:
    return {name: [t for delta in some for t in delta.token_ids] for name, some in deltas.items()}


def run(folder: Path, asked: list[Request] | None = None, **options: object) -> Tokens:
    given = {"dtype": "float32", "prefix_cache": False, "kv_prune": SNAPKV, **ROOMY, **options}
    with LLM(str(folder), **given) as llm:
        return tokens_of(serve(llm, asked or requests()))


def worst_gap(model: PreTrainedModel, found: Tokens, keep: Keep, budget: int = BUDGET) -> float:
    """Over all requests whose prompts are longer than the budget."""
    return max(
        gaps(model, one.prompt_ids, found[f"{one.request_id}.0"], keep).max().item()
        for one in requests()
        if len(one.prompt_ids) > budget
    )


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_tokens_are_the_oracles(saved: tuple[Path, PreTrainedModel], kernels: str) -> None:
    folder, model = saved
    keep = snapkv(BUDGET, WINDOW, KERNEL)
    assert worst_gap(model, run(folder, kernels=kernels), keep) < NEAR_TIE
    assert worst_gap(model, run(folder, kernels=kernels, kv_prune=None), keep) > NEAR_TIE


def test_layers_may_be_looked_at_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are where a prompt is long."""
    together = run(folder, kernels="native")
    monkeypatch.setattr(compactor, "MOST_NUMBERS", 1)
    assert run(folder, kernels="native") == together


def same_entries_for_all_heads(patch: pytest.MonkeyPatch) -> None:
    right = compactor.best_entries
    patch.setattr(
        compactor,
        "best_entries",
        lambda scores, n: right(scores[:, :1], n).expand(-1, scores.shape[1], -1),
    )


def entries_out_of_order_by_one(patch: pytest.MonkeyPatch) -> None:
    right = compactor.best_entries
    patch.setattr(compactor, "best_entries", lambda scores, n: (right(scores, n) - 1).clamp(0))


def positions_count_entries(patch: pytest.MonkeyPatch) -> None:
    """Tokens after pruning are rotated as if the prompt had been as short as what stayed."""
    right = StepBuffers.fill

    def fill(self: StepBuffers, rows: list, sequences: object) -> object:  # type: ignore[type-arg]
        shape, step = right(self, rows, sequences)  # type: ignore[arg-type]
        first = 0
        for row in rows:
            if row.kv_start is not None:
                step.inputs[0].positions[first : first + row.num_tokens] -= (
                    row.start - row.kv_start[0]
                )
            first += row.num_tokens
        return shape, step

    patch.setattr(StepBuffers, "fill", fill)


def window_of_one_token_too_early(patch: pytest.MonkeyPatch) -> None:
    right = compactor.Compactor.windows

    def windows(self: compactor.Compactor, plan: StepPlan) -> object:
        made = right(self, plan)
        if made is not None:
            spans = made._spans.items()
            made._spans = {name: slice(span.start - 1, span.stop - 1) for name, span in spans}
        return made

    patch.setattr(compactor.Compactor, "windows", windows)


@pytest.mark.parametrize(
    "mutant",
    [
        same_entries_for_all_heads,
        entries_out_of_order_by_one,
        positions_count_entries,
        window_of_one_token_too_early,
    ],
)
def test_the_oracle_rejects(
    llama: tuple[Path, PreTrainedModel],
    mutant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant(monkeypatch)
    found = run(llama[0])
    assert worst_gap(llama[1], found, snapkv(BUDGET, WINDOW, KERNEL)) > NEAR_TIE


def test_a_budget_that_holds_the_prompt_changes_nothing(folder: Path) -> None:
    roomy = run(folder, kv_prune="snapkv:budget=200,window=8")
    assert roomy == run(folder, kv_prune=None)
    small = run(folder)
    differ = [name for name in roomy if small[name] != roomy[name]]
    assert differ
    assert not {"40.0", "12.0"} & set(differ), "prompts within the budget are not pruned"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_tokens_however_a_request_is_run(folder: Path, dtype: str) -> None:
    """Chunks of any size (also such that one token would be left), alone, in another order, replayed, overlapped."""
    base = run(folder, dtype=dtype)
    for changes in (
        {"max_tokens_per_step": 50, "max_num_seqs": 4},
        {"max_tokens_per_step": 199},
        {"max_tokens_per_step": 195},
        {"max_tokens_per_step": 15, "max_num_seqs": 2},
        {"max_num_seqs": 1},
        {"recording": False},
        {"chunked_prefill": False},
        {"policy": "priority"},
        {"block_size": 48, "num_blocks": 200},
    ):
        assert run(folder, dtype=dtype, **changes) == base, changes
    assert run(folder, list(reversed(requests())), dtype=dtype) == base


def test_a_prefix_hit_equals_a_miss(folder: Path) -> None:
    base = run(folder)
    given = {"dtype": "float32", "kv_prune": SNAPKV, **ROOMY}
    with LLM(str(folder), **given) as llm:
        for _ in range(2):
            assert tokens_of(serve(llm, requests())) == base
        cached = {name: some[0].num_cached for name, some in serve(llm, requests()).items()}
    assert cached == {"200.0": 192, "131.0": 112, "90.0": 80, "41.0": 32, "40.0": 32, "12.0": 0}


def test_preempted_equals_uninterrupted(folder: Path) -> None:
    """Recomputation prefills to the end of the prompt, prunes again, and replays the outputs on what stayed."""
    long = replace_tokens(GREEDY, 60)
    base = run(folder, requests(long))
    for prefix_cache in (False, True):
        given = {"dtype": "float32", "kv_prune": SNAPKV, "prefix_cache": prefix_cache, **ROOMY}
        with LLM(str(folder), **given) as llm:
            rng = random.Random(1)
            found: Tokens = {}
            for one in requests(long):
                llm.engine.add(one)
            roster = llm.engine.parts.scheduler._roster
            num_preempted = 0
            while llm.engine.has_work:
                if roster.running and rng.random() < 0.15:
                    roster.preempt(rng.choice(list(roster.running.values())))
                    num_preempted += 1
                for delta in llm.engine.step():
                    found.setdefault(f"{delta.request_id}.0", []).extend(delta.token_ids)
                llm.engine.check_integrity()
        assert num_preempted > 5
        assert found == base


def test_few_blocks_equal_many(folder: Path) -> None:
    """The longest prompt takes 13 of 15 blocks, so others are preempted and some are compacted in place."""
    assert run(folder, num_blocks=15, max_model_len=240) == run(folder)
    assert run(folder, num_blocks=15, max_model_len=240, prefix_cache=True) == run(folder)


def test_overlapped_equals_plain(folder: Path) -> None:
    base = run(folder)
    given = {"dtype": "float32", "kv_prune": SNAPKV, **ROOMY}
    with LLM(str(folder), **given) as llm:
        llm.engine.parts = replace(llm.engine.parts, depth=1)
        assert tokens_of(serve(llm, requests())) == base


@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
def test_entries_in_fewer_bits_move_as_they_are(folder: Path, kv_format: str) -> None:
    """Pruned caches of each format, whole, in chunks, alone, short of blocks."""
    base = run(folder, kv_format=kv_format)
    assert base != run(folder, kv_format=kv_format, kv_prune=None)
    for changes in (
        {"max_tokens_per_step": 50, "max_num_seqs": 4},
        {"max_num_seqs": 1},
        {"num_blocks": 15, "max_model_len": 240, "prefix_cache": True},
    ):
        assert run(folder, kv_format=kv_format, **changes) == base, changes


def test_drafts_follow_what_stayed(folder: Path) -> None:
    """Random models repeat themselves, so prompt lookup finds drafts; rejected ones are rolled back by entries."""
    long = replace_tokens(GREEDY, 60)
    base = run(folder, requests(long))
    given = {"dtype": "float32", "kv_prune": SNAPKV, "speculate": "prompt_lookup", **ROOMY}
    given["draft_length"] = "fixed"  # adaptive goes by the clock
    with LLM(str(folder), **given) as llm:
        assert tokens_of(serve(llm, requests(long))) == base
        stats = llm.engine.stats()
    assert stats.num_draft_tokens > stats.num_accepted_tokens > 5, "some stand, some fall"


def test_choices_samples_and_prompt_logprobs(folder: Path) -> None:
    params = SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=12, prompt_logprobs=1)
    with LLM(str(folder), dtype="float32", kv_prune=SNAPKV, **ROOMY) as llm:
        pruned = serve(llm, requests(params))
    with LLM(str(folder), dtype="float32", **ROOMY) as llm:
        whole = serve(llm, requests(params))
    assert pruned.keys() == whole.keys()
    for name, deltas in pruned.items():
        assert deltas[0].prompt_logprobs == whole[name][0].prompt_logprobs
        assert deltas[0].token_ids == whole[name][0].token_ids, (
            "the first token saw the whole prompt"
        )
    alone = [replace_tokens(params, 12)]
    assert tokens_of(pruned) == run(folder, requests(alone[0]), max_num_seqs=1)


def test_blocks_come_back_and_let_more_run_together(folder: Path) -> None:
    """Prompts of 13 blocks in 40: three whole ones, or one or two being computed beside those that are pruned."""
    rng = random.Random(0)
    asked = [
        Request(
            request_id=f"r{i}",
            prompt_ids=rng.choices(range(3, 199), k=200),
            params=replace_tokens(GREEDY, 40),
        )
        for i in range(8)
    ]
    most = {}
    for spec in (None, SNAPKV):
        options = {**ROOMY, "num_blocks": 40, "max_tokens_per_step": 200}
        with LLM(str(folder), dtype="float32", kv_prune=spec, prefix_cache=False, **options) as llm:
            for one in asked:
                llm.engine.add(one)
            most[spec] = 0
            while llm.engine.has_work:
                llm.engine.step()
                most[spec] = max(most[spec], llm.engine.stats().num_running)
            assert llm.engine.stats().preemptions == 0
    assert most[SNAPKV] >= 2 * most[None], most


FILE = '''
"""Keep every other entry, from the last one back."""

from dataclasses import dataclass

import torch

from nonet.kv.prune.base import LayersView, Needs


class EveryOther:
    @dataclass(frozen=True)
    class Config:
        budget: int = 64

    def __init__(self, config: Config) -> None:
        self.needs = Needs(budget=config.budget)

    def score(self, view: LayersView) -> torch.Tensor:
        shape = (len(view.layers), view.layout.num_kv_heads, len(view.positions))
        assert view.read_keys().shape == view.read_values().shape == (*shape, 16)
        back = len(view.positions) - 1 - view.positions
        scores = torch.where(back % 2 == 0, -back, -back - 1000).float()
        return scores.expand(shape)
'''


def test_a_pruner_is_one_file_and_a_line_of_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: tuple[Path, PreTrainedModel]
) -> None:
    (tmp_path / "every_other.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PRUNERS._entries, "every-other", "every_other:EveryOther")

    def keep(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
        kept = torch.zeros(keys.shape[:2], dtype=torch.bool)
        kept[:, range(keys.shape[1] - 1, max(-1, keys.shape[1] - 41), -2)] = True
        return kept

    found = run(llama[0], kv_prune="every-other:budget=20")
    assert worst_gap(llama[1], found, keep, budget=40) < NEAR_TIE


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kv_prune": "snapvk"}, UnknownNameError, "no KV pruner named 'snapvk'"),
        ({"kv_prune": "snapkv:window=64,budget=8"}, ConfigError, "a larger budget"),
        (
            {"kv_prune": SNAPKV, "max_tokens_per_step": 14},
            ConfigError,
            "beside max_num_seqs 8 running sequences it must hold the 8 last tokens",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    folder: Path, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        LLM(str(folder), **{**ROOMY, **options})


def test_a_model_of_windows_only_is_refused(tmp_path: Path) -> None:
    save("mistral", tmp_path)
    with pytest.raises(ConfigError, match="every layer of this model has a sliding window"):
        LLM(str(tmp_path), kv_prune="snapkv")


def replace_tokens(params: SamplingParams, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=params.temperature,
        seed=params.seed,
        n=params.n,
        max_tokens=max_tokens,
        ignore_eos=params.ignore_eos,
    )
