"""Speculation in the overlapped loop: few sequences wait for drafts, many run ahead, and no token changes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from nonet.core.grammar import Grammar
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence, StepResult
from nonet.engine import assemble
from nonet.engine.llm import LLM
from nonet.runner import runner
from nonet.runner.runner import LaunchedStep
from nonet.speculate import DRAFT_LENGTHS
from nonet.speculate.base import Context, Draft, Needs, Outcome, Proposer, Services
from nonet.speculate.cost import StepCost
from tests.model.families import save
from tests.system.random_requests import check_each_alone, random_request
from tests.system.tiny_text import write_tokenizer

ROOMY = {"dtype": "float32", "num_blocks": 400, "max_num_seqs": 8, "max_model_len": 200}
CROWDED = {**ROOMY, "num_blocks": 60, "max_tokens_per_step": 24, "overlap": True}
GRAMMAR = Grammar("regex", "[a-f]{3,20}(0[a-z]{1,3}){2,5}!")
MOST = 2


class UpTo:
    """A draft length that proposes for small batches only."""

    @dataclass(frozen=True)
    class Config:
        most: int = MOST

    def __init__(self, config: Config) -> None:
        self._config = config

    def wrap(self, inner: Proposer) -> Proposer:
        return Pausing(inner, self._config.most)


class Pausing(Proposer):
    """Hands everything on, and keeps what it was asked."""

    def __init__(self, inner: Proposer, most: int) -> None:
        self._inner, self._most = inner, most
        self.num_late = self.num_in_time = 0

    @property
    def needs(self) -> Needs:
        return replace(self._inner.needs, pauses=True)

    def start(self, services: Services) -> None:
        self._inner.start(services)

    def add(self, slot: int, sequence: NewSequence) -> None:
        self._inner.add(slot, sequence)

    def remove(self, slot: int) -> None:
        self._inner.remove(slot)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._inner.observe(outcomes)

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        self.num_late += sum(context.is_late for context in contexts)
        self.num_in_time += sum(one.is_sampled and not one.is_late for one in contexts)
        return self._inner.propose(contexts)

    def proposes_for(self, num_seqs: int) -> bool:
        return num_seqs <= self._most


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save("llama-bytes", path)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), prefix_cache=False, **ROOMY) as llm:
        yield llm


@pytest.fixture(autouse=True)
def up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFT_LENGTHS._entries, "up_to", f"{__name__}:UpTo")


def requests_of(rng: random.Random, *, is_greedy: bool) -> list[Request]:
    """Penalties, stop tokens, log probabilities of all kinds; every fourth follows a grammar."""
    found = [random_request(rng, number) for number in range(24)]
    for number, request in enumerate(found):
        params = request.params
        if number % 4 == 0:
            params = SamplingParams(grammar=GRAMMAR, seed=number, max_tokens=40)
        elif number % 2:  # few tokens to choose from, so that there is much to look up
            params = msgspec.structs.replace(params, logit_bias=dict.fromkeys(range(97, 101), 12.0))
        if is_greedy:  # random rows beside a second model are exact in distribution only
            params = msgspec.structs.replace(params, temperature=0.0)
        found[number] = msgspec.structs.replace(request, params=params)
    return found


@dataclass
class Served:
    results: dict[str, list[SequenceDelta]]
    proposer: Pausing
    num_preempted: int
    num_drafted: int
    num_accepted: int
    num_overlapped: int


def serve(
    folder: Path,
    requests: Sequence[Request],
    seed: int,
    speculate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Served:
    """Bunches of requests with pauses between them, so that the batch grows and shrinks over the threshold."""
    rng = random.Random(seed)
    results: dict[str, list[SequenceDelta]] = {request.request_id: [] for request in requests}
    with LLM(str(folder), **CROWDED, speculate=speculate, draft_length="up_to") as llm:
        engine = llm.engine
        roster, executor = engine.parts.scheduler._roster, engine.parts.executor
        collected = executor.collect

        def collect(step: LaunchedStep) -> StepResult:
            result = collected(step)
            for row in result.rows:
                seq = roster.running.get(row.seq_id)
                assert not (row.drafts and seq) or seq.num_in_flight == 1, "drafts come too late"
            return result

        monkeypatch.setattr(executor, "collect", collect)
        waiting = list(requests)
        num_preempted = 0
        while waiting or engine.has_work:
            if waiting and len(roster.running) <= 1:
                for _ in range(min(len(waiting), rng.choice([1, 3, 6]))):
                    engine.add(waiting.pop())
            if rng.random() < 0.02:
                engine.abort([rng.choice(requests).request_id])
            if roster.running and rng.random() < 0.03:
                roster.preempt(rng.choice(list(roster.running.values())))
                num_preempted += 1
            for delta in engine.step():
                results[delta.request_id].append(delta)
            engine.check_integrity()
        stats = engine.stats()
        proposer = engine.parts.executor.runner._proposer
    assert isinstance(proposer, Pausing)
    assert stats.blocks_free == stats.blocks_total
    return Served(
        results,
        proposer,
        num_preempted,
        stats.num_draft_tokens,
        stats.num_accepted_tokens,
        stats.overlapped_steps,
    )


@pytest.mark.parametrize("speculate", ["prompt_lookup:tokens=5", "draft_model:tokens=3,model="])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_request_gets_its_own_tokens(
    folder: Path, alone: LLM, speculate: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_model = speculate.startswith("draft_model")
    requests = requests_of(random.Random(seed), is_greedy=is_model)
    speculate += str(folder) if is_model else ""
    served = serve(folder, requests, seed, speculate, monkeypatch)
    assert served.proposer.num_late > 30
    assert served.proposer.num_in_time > 30
    assert served.num_overlapped > 20
    assert served.num_preempted > 1
    assert served.num_accepted > 10
    if is_model:
        # It is the target: what it guessed wrong would have stood on KV that is missing or of other tokens.
        assert served.num_accepted == served.num_drafted
    assert check_each_alone(alone, requests, served.results) > 12


def test_drafts_that_came_too_late_and_are_handed_on_are_caught(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant does not know which sequences have a step under way."""
    monkeypatch.setattr(runner, "Context", lambda *fields: Context(*fields[:5]))
    requests = requests_of(random.Random(1), is_greedy=False)
    with pytest.raises(AssertionError, match="too late"):
        serve(folder, requests, 1, "prompt_lookup:tokens=5", monkeypatch)


def test_it_runs_ahead_until_guesses_are_worth_the_wait(
    folder: Path, alone: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 1 s of any size, with 3 s of the host between them, and text that repeats itself now and then."""
    monkeypatch.setattr(assemble, "measure_cost", lambda *_: StepCost((1,), (1.0,)))
    monkeypatch.setattr(assemble, "no_gap", lambda: 3.0)
    prompts = [[number, *range(60, 90)] for number in range(4)]
    few = dict.fromkeys(range(97, 101), 12.0)
    params = [
        SamplingParams(
            temperature=temperature, seed=5, max_tokens=60, ignore_eos=True, logit_bias=few
        )
        for temperature in (2.0, 2.0, 0.0, 0.0)
    ]
    options = {**ROOMY, "overlap": True, "speculate": "prompt_lookup"}
    with LLM(str(folder), **options) as llm:
        found = [one.outputs[0].token_ids for one in llm.generate(prompts, params)]
        stats = llm.engine.stats()
    assert found == [one.outputs[0].token_ids for one in alone.generate(prompts, params)]
    assert stats.overlapped_steps > 10
    assert stats.num_accepted_tokens > 10
