"""A technique is one file and one line of its catalogue: four that the engine has never seen, used as any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nonet.core.catalogue import Catalogue
from nonet.core.errors import UnknownNameError
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.kv.format import KV_FORMATS
from nonet.kv.prune import PRUNERS
from nonet.sampling.processors import PROCESSORS
from nonet.speculate import PROPOSERS
from tests.model.families import save, save_words

OPTIONS = {"dtype": "float32", "num_blocks": 64, "max_num_seqs": 4, "max_model_len": 256, "threads": 1}  # fmt: skip
PROMPTS = [[3 + (7 * i) % 190 for i in range(100)], [5, 9, 13, 5, 9, 13, 5, 9]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)

STRIDED = """
from dataclasses import dataclass
import torch
from nonet.kv.prune.base import LayersView, Needs

class Strided:
    @dataclass(frozen=True, slots=True)
    class Config:
        budget: int = 64
        stride: int = 2

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def needs(self) -> Needs:
        return Needs(budget=self._config.budget)

    def score(self, view: LayersView) -> torch.Tensor:
        is_kept = view.positions % self._config.stride == 0
        return is_kept.float().expand(len(view.layers), view.layout.num_kv_heads, -1)
"""

REPEATER = """
from dataclasses import dataclass
from nonet.speculate.base import NO_DRAFT, Draft, Needs

class Repeater:
    @dataclass(frozen=True, slots=True)
    class Config:
        tokens: int = 3

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def needs(self) -> Needs:
        return Needs(max_drafts=self._config.tokens)

    def start(self, services) -> None: ...
    def add(self, slot, sequence) -> None: ...
    def remove(self, slot) -> None: ...
    def observe(self, outcomes) -> None: ...

    def propose(self, contexts):
        drafts = []
        for context in contexts:
            count = min(context.room, self._config.tokens) if context.is_sampled else 0
            drafts.append(Draft(tuple(context.token_ids[-1:]) * count) if count else NO_DRAFT)
        return drafts
"""

SIGNS = '''
class Signs:
    """Each number is the entry's mean magnitude, with its own sign."""

    name = "signs"
    kernels = ("reference",)

    def entry_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        return head_dim + 2

    def quantize(self, entries):
        import torch

        return entries.sign().to(torch.int8), entries.float().abs().mean(-1).bfloat16()

    def dequantize(self, codes, scales):
        return codes.float() * scales.float().unsqueeze(-1)
'''

EVEN_ONLY = """
class EvenOnly:
    reads_tokens = False

    def __init__(self, vocab_size: int) -> None: ...
    def add(self, slot, sequence) -> bool:
        return True
    def append(self, slot, token_ids) -> None: ...
    def remove(self, slot) -> None: ...

    def apply(self, logits, rows):
        for row in rows:
            logits[row.index, 1::2] = float("-inf")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save("llama", path)
    save_words(path)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[list[int]]:
    return generate(folder)[0]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Write one file and enter it in a catalogue; that is all that a technique takes."""
    monkeypatch.syspath_prepend(tmp_path)
    added: list[str] = []

    def enter(table: Catalogue, name: str, source: str, cls: str) -> None:
        module = f"one_file_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        added.append(module)
        monkeypatch.setitem(table._entries, name, f"{module}:{cls}")

    yield enter
    for module in added:
        sys.modules.pop(module, None)


def generate(folder: Path, **options: object) -> tuple[list[list[int]], LLM]:
    with LLM(str(folder), **{**OPTIONS, **options}) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        llm.engine.check_integrity()
    return [output.outputs[0].token_ids for output in outputs], llm


def test_a_pruner(folder: Path, plain: list[list[int]], add) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownNameError, match="strided"):
        generate(folder, kv_prune="strided:budget=32")
    add(PRUNERS, "strided", STRIDED, "Strided")
    pruned, llm = generate(folder, kv_prune="strided:budget=32,stride=3")
    assert llm.resolved.kv_prune == "strided:budget=32,stride=3"
    assert pruned[0] != plain[0]
    assert pruned[1] == plain[1], "a prompt within the budget keeps all its entries"
    everything, _ = generate(folder, kv_prune="strided:budget=128")
    assert everything == plain


def test_a_proposer(folder: Path, plain: list[list[int]], add) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownNameError, match="repeater"):
        generate(folder, speculate="repeater:tokens=2")
    add(PROPOSERS, "repeater", REPEATER, "Repeater")
    with LLM(str(folder), **OPTIONS, speculate="repeater:tokens=2", draft_length="fixed") as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        stats = llm.engine.stats()
    assert [output.outputs[0].token_ids for output in outputs] == plain
    assert stats.num_draft_tokens > 20


def test_a_kv_format(folder: Path, plain: list[list[int]], add) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownNameError, match="signs"):
        generate(folder, kv_format="signs", kernels="reference")
    add(KV_FORMATS, "signs", SIGNS, "Signs")
    rounded, llm = generate(folder, kv_format="signs", kernels="reference")
    _, whole = generate(folder, kernels="reference")
    head_dim = llm.spec.head_dim
    ratio = whole.resolved.memory.kv_bytes_per_block / llm.resolved.memory.kv_bytes_per_block
    assert ratio == pytest.approx(4 * head_dim / (head_dim + 2), rel=0.01)
    assert rounded != plain
    assert (
        generate(folder, kv_format="signs", kernels="reference", max_tokens_per_step=16)[0]
        == rounded
    )


def test_a_logits_processor(folder: Path, plain: list[list[int]], add) -> None:  # type: ignore[no-untyped-def]
    assert any(token % 2 for tokens in plain for token in tokens)
    add(PROCESSORS, "even_only", EVEN_ONLY, "EvenOnly")
    changed, _ = generate(folder)
    assert not any(token % 2 for tokens in changed for token in tokens)
    drafted, _ = generate(folder, speculate="prompt_lookup", draft_length="fixed")
    assert drafted == changed, "drafts are verified against the changed logits"
