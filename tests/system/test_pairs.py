"""Every two techniques run together and change nothing that neither changes alone, or are refused in one sentence.

On a tiny random model in float32. Techniques are lossless, or they change tokens: the lossy ones, and adapters and
grammars, which some of the requests ask for. A pair of lossless ones must give the tokens of the plain engine; one that
changes tokens beside a lossless one, its own; two that change them, the same tokens with every lossless one on as with
none. Kernels beside a lossy technique are compared with themselves: each has its own way with rounded weights.
A second model's guesses keep a random choice's distribution, not the choice, so beside it every request is greedy.
What stands above the engine (its options belong to the gateway) has its own tests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from nonet.config.compat import refuse_conflicts
from nonet.config.convert import convert
from nonet.config.options import options
from nonet.config.techniques import TECHNIQUES, Technique, conflict_between, matrix
from nonet.core.errors import ConfigError
from nonet.core.grammar import Grammar
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.lora_cases import config, write_many
from tests.model.test_quantized_checkpoints import publish
from tests.system.tiny_text import write_tokenizer

# What a technique needs on so small a model, and what stands in its place without it. FOLDER holds the tiny models.
SIZES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # Steps that are smaller than a prompt, so that there are chunks.
    "chunked prefill": ({"max_tokens_per_step": "128"}, {"max_tokens_per_step": "448"}),
    # Blocks for the prompts of four, and not for their outputs too.
    "preemption": (
        {"num_blocks": "34", "batching": "continuous", "kv_reservation": "paged"},
        {"num_blocks": "200"},
    ),
    "draft model": ({"speculate": "draft_model:model=FOLDER/draft"}, {}),
    "recent-only KV": ({"kv_prune": "recent:budget=128"}, {}),
    "LoRA": ({"lora_modules": "a=FOLDER/a,b=FOLDER/b"}, {}),
}
GRAMMAR = Grammar("regex", "[a-f]{0,8}(0[a-z]{1,3}){2,5}!")


def _with_sizes(one: Technique) -> Technique:
    on, off = SIZES.get(one.name, ({}, {}))
    return replace(one, on={**one.on, **on}, off={**one.off, **off})


ENGINE = [
    _with_sizes(one)
    for one in TECHNIQUES
    if one.device in (None, "cpu") and all(options()[name].section != "gateway" for name in one.on)
]
NAMED = {one.name: one for one in ENGINE}
KERNELS = {one.name for one in ENGINE if "kernels" in one.on}
CHANGING = [one for one in ENGINE if one.is_lossy or one.name in ("grammars", "LoRA")]
LOSSLESS = [one for one in ENGINE if one not in CHANGING]
PAIRS = list(combinations(ENGINE, 2))
ROOM = {
    "max_model_len": "448",
    "max_num_seqs": "4",
    "block_size": "16",
    "dtype": "float32",
    "device": "cpu",
    "threads": "1",
    # On so small a model no guess ever pays, and none would be made.
    "draft_length": "fixed",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose file holds codes, a draft that agrees with it here and there, and two adapters."""
    path = tmp_path_factory.mktemp("tiny")
    base = publish("gptq", path / "base", model="llama-bytes")
    write_many(base, config(r=2), [path / "a", path / "b"])
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in base.parameters():
            weights.add_(torch.randn(weights.shape, generator=noise) * 0.1 * weights.std())
    base.save_pretrained(path / "draft")
    for one in ("base", "draft"):
        write_tokenizer(path / one)
    return path


def prompts() -> list[list[int]]:
    """Long enough to be pruned and cut in chunks; two share a beginning."""
    rng = random.Random(5)
    shared = [rng.randrange(3, 199) for _ in range(200)]
    tails = [
        [rng.randrange(3, 199) for _ in range(count)] for count in (90, 130, 20, 108, 109, 110, 111)
    ]
    return [shared + tails[0], shared + tails[1], *tails[2:]]


GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=32, ignore_eos=True)

Tokens = list[list[int]]
Settings = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the requests ask for: adapters and a grammar for some, and whether any is random."""

    adapters: bool = False
    grammars: bool = False
    is_greedy: bool = False

    @classmethod
    def of(cls, *on: Technique) -> Wishes:
        names = {one.name for one in on}
        return cls("LoRA" in names, "grammars" in names, "draft model" in names)

    def params(self) -> list[SamplingParams]:
        found = [GREEDY if self.is_greedy or number % 2 == 0 else SAMPLED for number in range(7)]
        if self.grammars:
            for number in (0, 3, 5):
                found[number] = structs.replace(found[number], grammar=GRAMMAR, ignore_eos=False)
        return found

    def names(self) -> list[str | None]:
        return ["a", None, "b", "a", None, "b", None] if self.adapters else [None] * 7


@cache
def run(folder: Path, given: Settings, wishes: Wishes) -> Tokens:
    """Tokens of all prompts, some greedy, some sampled; of some once more, for what a cache may now hold."""
    with LLM(str(folder / "base"), **as_options(folder, given)) as llm:
        first = llm.generate(prompts(), wishes.params(), adapter=wishes.names())
        again = llm.generate(prompts()[:3], wishes.params()[:3], adapter=wishes.names()[:3])
        llm.engine.check_integrity()
    tokens = [output.outputs[0].token_ids for output in first]
    assert tokens[:3] == [output.outputs[0].token_ids for output in again]
    if wishes.grammars:
        for number in (0, 3, 5):
            text = first[number].outputs[0].text
            assert first[number].outputs[0].finish_reason == "stop"
            assert re.fullmatch(GRAMMAR.text, text), text
    return tokens


def as_options(folder: Path, given: Settings) -> dict[str, Any]:
    rows = options()
    return {
        name: convert(rows[name], text.replace("FOLDER", str(folder)), "test", is_text=True)
        for name, text in given
    }


def settings(*on: Technique) -> Settings:
    """All techniques off but these. The kernels that are not asked for are the quick ones."""
    given: dict[str, str] = {}
    for one in ENGINE:
        given |= one.off
    if not any(one.name in KERNELS for one in on):
        given |= {"kernels": "native"}
    for one in on:
        given |= one.on
    return frozenset({**ROOM, **given}.items())


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a.name} + {b.name}" for a, b in PAIRS])
def test_pair(folder: Path, first: Technique, second: Technique) -> None:
    conflict = conflict_between(first, second)
    wishes = Wishes.of(first, second)
    if conflict is not None:
        if conflict.first[0] == conflict.second[0]:
            return  # one option cannot be given two values
        with pytest.raises(ConfigError, match=re.escape(conflict.reason)):
            run(folder, settings(first, second), wishes)
        return
    changing = [one for one in (first, second) if one in CHANGING]
    together = run(folder, settings(first, second), wishes)
    if len(changing) == 2:
        assert together == run(folder, settings(*changing, *beside(changing)), wishes)
    elif any(one.is_lossy for one in changing) and not KERNELS.isdisjoint(
        (first.name, second.name)
    ):
        assert together == run(folder, settings(first, second, NAMED["preemption"]), wishes)
    else:
        assert together == run(folder, settings(*changing), wishes)


def beside(changing: Sequence[Technique]) -> list[Technique]:
    """Every lossless technique that goes with these and with each other; of two that do not, the first.

    A second model is left out: it would make all requests greedy.
    """
    found: list[Technique] = []
    for one in LOSSLESS:
        others = [*changing, *found]
        if one.name != "draft model" and all(
            conflict_between(one, other) is None for other in others
        ):
            found.append(one)
    return found


def test_what_changes_tokens_changes_some(folder: Path) -> None:
    """Guards the guard: a switch that does nothing would pass every pair."""
    base = run(folder, settings(), Wishes())
    for one in CHANGING:
        assert run(folder, settings(one), Wishes.of(one)) != base, one.name


def test_preemption_really_happens(folder: Path) -> None:
    with LLM(str(folder / "base"), **as_options(folder, settings(NAMED["preemption"]))) as llm:
        llm.generate(prompts(), [GREEDY] * 7)
        assert llm.engine.stats().preemptions > 0


def test_some_guesses_stand_and_some_fall(folder: Path) -> None:
    """A draft that is always right, or always wrong, would leave a path untried."""
    for name in ("draft model", "prompt lookup"):
        with LLM(str(folder / "base"), **as_options(folder, settings(NAMED[name]))) as llm:
            llm.generate(prompts(), [GREEDY] * 7)
            stats = llm.engine.stats()
            assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens, name


def test_every_conflict_is_refused_at_start() -> None:
    for first, second in combinations(TECHNIQUES, 2):
        conflict = conflict_between(first, second)
        if conflict is not None and conflict.first[0] != conflict.second[0]:
            both: Mapping[str, object] = {
                name: text.partition(":")[0] for name, text in {**first.on, **second.on}.items()
            }
            with pytest.raises(ConfigError, match="exclude each other"):
                refuse_conflicts(both)


def test_the_documented_matrix_is_the_code_s() -> None:
    page = Path(__file__).parents[2] / "docs" / "compatibility.md"
    assert matrix() in page.read_text(encoding="utf-8"), (
        "docs/compatibility.md is out of date: replace its table by nonet.config.techniques.matrix()"
    )
