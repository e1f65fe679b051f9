"""Before anything is loaded: second models are found and compared; a proposer from one file of somebody else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.model.families import save, save_words

from nonet.config.load import from_options
from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.engine.prepare import resolve_config
from nonet.engine.speculation import read_speculation
from nonet.speculate import PROPOSERS

OPTIONS = {"dtype": "float32", "num_blocks": 40, "max_num_seqs": 4, "max_model_len": 128}

# Guesses that the token after next is what came two tokens ago: a whole technique, with the seam's interface only.
ECHO = """
from nonet.speculate.base import NO_DRAFT, Draft, Needs


class Echo:
    def __init__(self):
        self.asked = 0

    @property
    def needs(self):
        return Needs(max_drafts=2)

    def start(self, services):
        pass

    def add(self, slot, sequence):
        pass

    def remove(self, slot):
        pass

    def observe(self, outcomes):
        pass

    def propose(self, contexts):
        return [
            Draft(tuple(context.token_ids[-2:])[: context.room]) if context.is_sampled else NO_DRAFT
            for context in contexts
        ]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save("llama", path)
    save_words(path)
    return path


def test_a_second_model_with_other_words_is_refused(folder: Path, tmp_path: Path) -> None:
    save("llama", tmp_path)
    words = [f"t{number}" for number in range(199)]
    save_words(tmp_path, [*words[:17], "other", *words[18:]])
    config = from_options(
        {"model": str(folder), "speculate": f"draft_model:model={tmp_path}", **OPTIONS}
    )
    with pytest.raises(ConfigError, match="token id 17 is 'other' in it and 't17' in the model"):
        resolve_config(config)


def test_a_second_model_that_fits_is_planned(folder: Path, tmp_path: Path) -> None:
    save("qwen3", tmp_path)
    save_words(tmp_path)
    spec = f"draft_model:model={tmp_path},tokens=3,weight_format=int8"
    resolved, _ = resolve_config(from_options({"model": str(folder), "speculate": spec, **OPTIONS}))
    assert resolved.speculation is not None
    second = resolved.speculation.second_model
    assert second is not None
    assert (second.model_path, second.weight_format) == (str(tmp_path), "int8")
    assert resolved.speculation.lookahead_tokens == 3


def test_unknown_names_are_met_with_what_is_known(folder: Path) -> None:
    for given, known in (
        ({"speculate": "promt_lookup"}, "Did you mean 'prompt_lookup'"),
        ({"speculate": "draft_model:modle=x"}, "Did you mean 'model'"),
        ({"speculate": "draft_model:model=no-such-model"}, "no model 'no-such-model'"),
        ({"speculate": "prompt_lookup", "draft_length": "adaptve"}, "Did you mean 'adaptive'"),
    ):
        with pytest.raises(UnknownNameError, match=known):
            read_speculation(from_options(given), folder)


def test_a_draft_model_and_a_pruner_exclude_each_other(folder: Path) -> None:
    given = {"speculate": f"draft_model:model={folder}", "kv_prune": "snapkv:budget=64"}
    with pytest.raises(ConfigError, match="draft_model and kv_prune snapkv exclude each other"):
        read_speculation(from_options(given), folder)


@pytest.mark.parametrize("length", ["fixed", "adaptive"])
def test_a_proposer_from_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    """Nothing but the catalogue knows of it, and the tokens are those of a run without it."""
    (tmp_path / "echo_proposer.py").write_text(ECHO)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PROPOSERS._entries, "echo", "echo_proposer:Echo")
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=20, ignore_eos=True)
    prompts = [[5, 6, 7], [9] * 20]
    with LLM(str(folder), **OPTIONS) as llm:
        expected = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
    with LLM(str(folder), speculate="echo", draft_length=length, **OPTIONS) as llm:
        found = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
        drafted = llm.engine.stats().num_draft_tokens
        assert llm.engine.info.speculation == "echo"
    sys.modules.pop("echo_proposer")
    assert found == expected
    assert drafted > 0 or length == "adaptive"
