"""Every two techniques run together and change nothing that neither changes alone, or are refused in one sentence.

On a tiny random model in float32. A pair of lossless techniques must give the tokens of the plain engine; a lossy one
beside a lossless one, the lossy one's own tokens; two lossy ones, the same tokens with every lossless technique on as
with none. Kernels beside a lossy technique are compared with themselves: each has its own way with rounded weights.
What stands above the engine (its options belong to the gateway) has its own tests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from nonet.config.compat import refuse_conflicts
from nonet.config.convert import convert
from nonet.config.options import options
from nonet.config.techniques import TECHNIQUES, Technique, conflict_between, matrix
from nonet.core.errors import ConfigError
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save
from tests.system.tiny_text import write_tokenizer

# Blocks for the prompts of four, and not for their outputs too.
PREEMPTION = Technique(
    name="preemption",
    on={"num_blocks": "34", "batching": "continuous", "kv_reservation": "paged"},
    off={"num_blocks": "200"},
    is_rung=False,
)
# Steps that are smaller than a prompt, so that there are chunks.
CHUNKED = {"chunked prefill": ({"max_tokens_per_step": "128"}, {"max_tokens_per_step": "448"})}


def _with_sizes(one: Technique) -> Technique:
    on, off = CHUNKED.get(one.name, ({}, {}))
    return replace(one, on={**one.on, **on}, off={**one.off, **off})


ENGINE = [
    _with_sizes(one)
    for one in (*TECHNIQUES, PREEMPTION)
    if one.device in (None, "cpu")
    and all(options()[name].section != "gateway" for name in one.on)
    and one.on
    != {"weight_format": "native"}  # keeps the codes of a file, and the tiny model's holds floats
]
KERNELS = {one.name for one in ENGINE if "kernels" in one.on}
LOSSLESS = [one for one in ENGINE if not one.is_lossy]
PAIRS = list(combinations(ENGINE, 2))
ROOM = {
    "max_model_len": "448",
    "max_num_seqs": "4",
    "block_size": "16",
    "dtype": "float32",
    "device": "cpu",
    "threads": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save("llama-bytes", path)
    write_tokenizer(path)
    return path


def prompts() -> list[list[int]]:
    """Long enough to be pruned and cut in chunks; two share a beginning."""
    rng = random.Random(5)
    shared = [rng.randrange(3, 199) for _ in range(200)]
    tails = [
        [rng.randrange(3, 199) for _ in range(count)] for count in (90, 130, 20, 108, 109, 110, 111)
    ]
    return [shared + tails[0], shared + tails[1], *tails[2:]]


GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=40, ignore_eos=True)

Tokens = list[list[int]]


@cache
def run(folder: Path, settings: frozenset[tuple[str, str]]) -> Tokens:
    """Tokens of all prompts, some greedy, some sampled; once more for what a cache may now hold."""
    rows = options()
    given = {name: convert(rows[name], text, "test", is_text=True) for name, text in settings}
    params = [GREEDY, SAMPLED] * 3 + [GREEDY]
    with LLM(str(folder), **given) as llm:
        first = llm.generate(prompts(), params)
        again = llm.generate(prompts(), params)
        llm.engine.check_integrity()
    tokens = [output.outputs[0].token_ids for output in first]
    assert tokens == [output.outputs[0].token_ids for output in again]
    return tokens


def settings(*on: Technique) -> frozenset[tuple[str, str]]:
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
    if conflict is not None:
        if conflict.first[0] == conflict.second[0]:
            return  # one option cannot be given two values
        with pytest.raises(ConfigError, match=re.escape(conflict.reason)):
            run(folder, settings(first, second))
        return
    lossy = [one for one in (first, second) if one.is_lossy]
    together = run(folder, settings(first, second))
    if len(lossy) == 2:
        compatible = [
            one for one in LOSSLESS if all(conflict_between(one, other) is None for other in lossy)
        ]
        assert together == run(folder, settings(*lossy, *compatible))
    elif lossy and not KERNELS.isdisjoint((first.name, second.name)):
        assert together == run(folder, settings(first, second, PREEMPTION))
    else:
        assert together == run(folder, settings(*lossy))


def test_lossy_techniques_change_something(folder: Path) -> None:
    """Guards the guard: a switch that does nothing would pass every pair."""
    base = run(folder, settings())
    for one in ENGINE:
        if one.is_lossy and one.on != {
            "weight_format": "native"
        }:  # the tiny model's file holds floats
            assert run(folder, settings(one)) != base, one.name


def test_preemption_really_happens(folder: Path) -> None:
    rows = options()
    given = {
        name: convert(rows[name], text, "test", is_text=True) for name, text in settings(PREEMPTION)
    }
    with LLM(str(folder), **given) as llm:
        llm.generate(prompts(), [GREEDY] * 7)
        assert llm.engine.stats().preemptions > 0


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
