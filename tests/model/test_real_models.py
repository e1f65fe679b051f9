"""The three real models against Hugging Face transformers, float32: logits, and greedy tokens by teacher forcing.

If each generated token is the oracle's choice after the same prefix, the oracle's own greedy run is the same sequence;
one forward pass checks a whole continuation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nonet.bench.quality.run import Candidate, run_tasks
from nonet.cli.quality_subject import LLMSubject
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.engine.scorer import Scorer
from nonet.text.tokenizer import load_tokenizer
from tests import oracles
from tests.data.prompts import PROMPTS
from tests.quality_data import QUESTIONS, write_quality_data
from tests.real_models import real_model

MODELS = ["smollm2", "qwen2.5-coder-0.5b", "gemma-3-270m"]
NEW_TOKENS = 64
TOLERANCE = 1e-3
# In float32 two kernels differ by about 1e-4 in a logit; a choice between logits closer than this is a tie.
NEAR_TIE = 2e-3


@pytest.fixture(scope="module", params=MODELS)
def model_path(request: pytest.FixtureRequest) -> Path:
    return real_model(request.param)


@pytest.fixture(scope="module")
def oracle(model_path: Path) -> PreTrainedModel:
    return oracles.oracle(model_path)


@pytest.fixture(scope="module")
def llm(model_path: Path) -> Iterator[LLM]:
    with LLM(str(model_path), dtype="float32", max_model_len=512, num_blocks=1024) as opened:
        yield opened


@pytest.fixture(scope="module")
def generated(llm: LLM) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, output ids) of every prompt, greedy, all in one batch."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params)
    return [(one.prompt_ids, one.outputs[0].token_ids) for one in outputs]


@pytest.mark.models
@pytest.mark.slow
def test_logits_equal_transformers(model_path: Path, oracle: PreTrainedModel) -> None:
    ids = torch.arange(1000, 1100).unsqueeze(0)
    with torch.no_grad():
        expected = oracle(ids).logits[0]
    for kernels in ("reference", "native"):
        ours = Scorer(model_path, kernels=kernels, max_tokens=256).logits(ids[0].tolist())
        difference = (ours - expected).abs().max().item()
        assert difference < TOLERANCE, f"{kernels}: {difference}"


@pytest.mark.models
@pytest.mark.slow
def test_greedy_tokens_equal_transformers(
    generated: list[tuple[list[int], list[int]]], oracle: PreTrainedModel
) -> None:
    ties = 0
    for prompt, output in generated:
        assert len(output) == NEW_TOKENS
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output).unsqueeze(1)).squeeze(1)
        gaps = logits.max(-1).values - chosen
        ties += int((gaps > 0).sum())
        assert gaps.max().item() < NEAR_TIE
    assert ties <= 2, (
        f"{ties} of {len(generated) * NEW_TOKENS} tokens were near ties that fell the other way"
    )


@pytest.mark.models
@pytest.mark.slow
def test_quality_bench_equals_transformers(
    model_path: Path, llm: LLM, oracle: PreTrainedModel, tmp_path: Path
) -> None:
    """Perplexity of the same windows within 1e-3, and the same multiple-choice scores."""
    data = write_quality_data(tmp_path)
    environ = {"NONET_DATA": str(data)}

    @contextmanager
    def opened() -> Iterator[LLMSubject]:
        yield LLMSubject(llm)

    specs = ["perplexity:windows=3,window=80", "piqa:n=6"]
    likely, choices = run_tasks([Candidate("float32", opened)], specs, environ)
    tokenizer = load_tokenizer(model_path)
    ids = tokenizer.encode((data / "wikitext2" / "valid.txt").read_text(), add_special=False)
    beginning = [tokenizer.bos_id] if tokenizer.encode("a")[0] == tokenizer.bos_id else []
    body = 80 - len(beginning)
    windows = [beginning + ids[at : at + body] for at in range(0, len(ids) - body + 1, body)]
    chosen = [windows[i] for i in sorted(random.Random(0).sample(range(len(windows)), 3))]
    with torch.no_grad():
        losses = oracle(torch.tensor(chosen)).logits[:, :-1].double().log_softmax(-1)
    targets = torch.tensor(chosen)[:, 1:].unsqueeze(2)
    expected = math.exp(-losses.gather(2, targets).mean().item())
    assert likely.rows[0].figures[0].interval.value == pytest.approx(expected, rel=1e-3)
    for number, (goal, first, second, _) in enumerate(QUESTIONS):
        context = f"Question: {goal}\nAnswer:"
        for end, found in zip(
            (first, second), choices.rows[0].details["scores"][number], strict=True
        ):  # type: ignore[index]
            whole = tokenizer.encode(f"{context} {end}")
            start = len(tokenizer.encode(context))
            with torch.no_grad():
                rows = oracle(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            score = sum(rows[i - 1, whole[i]].item() for i in range(start, len(whole)))
            assert found == pytest.approx(score, abs=5e-3)
