"""The quality bench on a tiny Llama against transformers: perplexity, KL, choices, and forced outputs in any batch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nonet.bench.quality.report import TaskTable
from nonet.bench.quality.run import Candidate, run_tasks
from nonet.cli.main import run
from nonet.cli.quality_subject import LLMSubject
from nonet.core.errors import InvalidRequestError
from nonet.core.given_text import GivenText
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.quality_data import QUESTIONS, write_quality_data
from tests.system.tiny_text import write_tokenizer

OPTIONS = {"dtype": "float32", "max_model_len": 256, "num_blocks": 64, "threads": 1}
TEXT = list(
    b"A nonet is an ensemble of nine; a nonet is an ensemble of nine players, or music for one."
)


def save(folder: Path, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quality_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, PreTrainedModel]]:
    """Two models of one shape, so that there is something to diverge."""
    folders = [tmp_path_factory.mktemp(f"model-{seed}") for seed in range(2)]
    return [(folder, save(folder, seed)) for seed, folder in enumerate(folders)]


def candidate(path: Path, **options: object) -> Candidate:
    @contextmanager
    def opened() -> Iterator[LLMSubject]:
        with LLM(str(path), **{**OPTIONS, **options}) as llm:
            yield LLMSubject(llm)

    return Candidate(path.name + str(options), opened)


def log_likelihoods(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """float64 [T - 1, V]: row i is the oracle's for token i + 1."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


def windows_of(data: Path, table: TaskTable, size: int) -> list[list[int]]:
    """Every window of the text; the figures say which were taken."""
    ids = list((data / "wikitext2" / "valid.txt").read_bytes())
    return [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]


@pytest.mark.parametrize(
    "spec", ["perplexity:windows=4,window=60", "continuation:texts=4,prompt=44,output=16"]
)
def test_likelihood_and_divergence_equal_transformers(
    spec: str, data: Path, models: list[tuple[Path, PreTrainedModel]]
) -> None:
    (first, oracle), (second, other) = models
    (table,) = run_tasks([candidate(first), candidate(second)], [spec], {"NONET_DATA": str(data)})
    start = 0 if spec.startswith("perplexity") else 43
    expected = []
    for ids in windows_of(data, table, 60):
        p, q = (log_likelihoods(model, ids)[start:] for model in (oracle, other))
        targets = torch.tensor(ids[1:])[start:].unsqueeze(1)
        divergence = (p.exp() * (p - q)).sum(-1).mean().item()
        losses = [-x.gather(1, targets).mean().item() for x in (p, q)]
        expected.append(
            (*losses, divergence, (p.argmax(-1) == q.argmax(-1)).double().mean().item())
        )
    reference, row = table.rows
    for place in range(4):
        loss = reference.figures[0].items[place]
        at = min(range(len(expected)), key=lambda i: abs(expected[i][0] - loss))
        found = (loss, *(figure.items[place] for figure in row.figures))
        np.testing.assert_allclose(found, expected[at], rtol=1e-4)
    assert row.figures[0].interval.value == pytest.approx(math.exp(np.mean(row.figures[0].items)))


def test_choices_equal_transformers(data: Path, models: list[tuple[Path, PreTrainedModel]]) -> None:
    path, oracle = models[0]
    (table,) = run_tasks([candidate(path)], ["piqa:n=6"], {"NONET_DATA": str(data)})
    scores = table.rows[0].details["scores"]
    expected, hits = [], []
    for goal, first, second, label in QUESTIONS:
        context = f"Question: {goal}\nAnswer:".encode()
        both = []
        for end in (first, second):
            ids = list(context + f" {end}".encode())
            rows = log_likelihoods(oracle, ids)
            places = range(len(context) - 1, len(ids) - 1)
            both.append(sum(rows[i, ids[i + 1]].item() for i in places))
        expected.append(both)
        hits.append(float((both[1] > both[0]) == label))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)  # type: ignore[arg-type]
    assert table.rows[0].figures[0].items == hits


@pytest.mark.parametrize(
    "options",
    [
        {}, {"max_tokens_per_step": 16}, {"num_blocks": 12, "max_num_seqs": 8}, {"prefix_cache": False},
        {"speculate": "prompt_lookup", "draft_length": "fixed"},
    ],
    ids=["plain", "chunked", "preempted", "no prefix cache", "drafts"],
)  # fmt: skip
def test_a_text_that_is_said_has_the_distributions_of_one_that_is_read(
    options: dict[str, object], models: list[tuple[Path, PreTrainedModel]]
) -> None:
    path, oracle = models[0]
    expected = torch.stack([log_likelihoods(oracle, TEXT)])[0].numpy()
    said = [GivenText(TEXT[:cut], TEXT[cut:]) for cut in (1, 20, 33, len(TEXT) - 1)]
    with LLM(str(path), **{**OPTIONS, "max_model_len": 128, **options}) as llm:
        (read,) = llm.distributions([GivenText(TEXT, [])])
        for text, logits in zip(said, llm.distributions(said), strict=True):
            assert logits.shape == (len(text.output_ids), 260)
            found = torch.from_numpy(logits).double().log_softmax(-1).numpy()
            np.testing.assert_allclose(found, expected[len(text.prompt_ids) - 1 :], atol=1e-4)
        assert llm.engine.parts.executor.runner.tap is None
        llm.engine.check_integrity()
    np.testing.assert_allclose(
        torch.from_numpy(read).double().log_softmax(-1).numpy(), expected, atol=1e-4
    )


def test_forced_outputs_report_the_models_own_likelihood(
    models: list[tuple[Path, PreTrainedModel]],
) -> None:
    path, oracle = models[0]
    rows = log_likelihoods(oracle, TEXT)
    params = SamplingParams(
        temperature=0.7, top_p=0.5, seed=3, max_tokens=20, forced_ids=TEXT[10:25], logprobs=0, ignore_eos=True
    )  # fmt: skip
    with LLM(str(path), **OPTIONS) as llm:
        (output,) = llm.generate([TEXT[:10]], params)
        with pytest.raises(InvalidRequestError, match="forced_ids holds token id 260"):
            llm.generate([[1]], SamplingParams(forced_ids=[260]))
    choice = output.outputs[0]
    assert choice.token_ids[:15] == TEXT[10:25]
    assert len(choice.token_ids) == 20, "what comes after the forced tokens is the model's"
    assert choice.logprobs is not None
    found = [row.logprob for row in choice.logprobs[:15]]
    expected = [rows[9 + i, TEXT[10 + i]].item() for i in range(15)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_answers_held_to_their_schema_satisfy_it(
    data: Path, models: list[tuple[Path, PreTrainedModel]]
) -> None:
    """The model is random, so what it says on its own parses as nothing."""
    specs = ["jsonschema:max_tokens=60", "jsonschema:grammar=true,max_tokens=60"]
    opened = candidate(models[0][0], max_model_len=512, num_blocks=128)
    free, held = run_tasks([opened], specs, {"NONET_DATA": str(data)})
    shares = [{f.name: f.items for f in table.rows[0].figures} for table in (free, held)]
    assert sum(shares[0]["parses"]) == 0
    assert sum(shares[1]["ends"]) > 0
    for ends, parses, satisfies in zip(*shares[1].values(), strict=True):
        assert not ends or (parses and satisfies)


def test_the_command_from_flags_to_file(
    data: Path,
    models: list[tuple[Path, PreTrainedModel]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NONET_DATA", str(data))
    file, page = tmp_path / "quality.json", tmp_path / "deep" / "quality.md"
    line = [
        "bench",
        "quality",
        str(models[0][0]),
        "--task",
        "perplexity:windows=3,window=60",
        "--task",
        "piqa:n=6",
    ]
    line += [
        "--max-model-len",
        "256",
        "--num-blocks",
        "64",
        "--threads",
        "1",
        "--against",
        "dtype=float32",
    ]
    line += [
        "--with",
        "dtype=float32 quant=int4:group=16",
        "--json",
        str(file),
        "--markdown",
        str(page),
    ]
    assert run(line) == 0
    found = json.loads(file.read_text())
    assert found["kind"] == "quality"
    assert found["libraries"]["torch"]
    assert found["commit"] is None or len(found["commit"]) >= 40
    assert list(found["configurations"]) == ["dtype=float32", "dtype=float32 quant=int4:group=16"]
    assert (
        found["configurations"]["dtype=float32 quant=int4:group=16"]["weight_format"]
        == "int4:group=16"
    )
    assert str(tmp_path.parent) not in json.dumps(found["configurations"])
    kl = found["tables"][0]["rows"][1]["figures"][1]
    assert kl["name"] == "KL"
    assert kl["interval"]["low"] < kl["interval"]["value"] < kl["interval"]["high"]
    assert min(kl["items"]) > 0
    assert len(kl["items"]) == 3
    assert capsys.readouterr().out.strip() == page.read_text().strip()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--with", "int8"], "'int8' is not option=value"),
        (["--with", "weight_fromat=int8"], "Did you mean 'weight_format'?"),
        (["--with", "dtype=float33"], "--with: dtype is 'float33'"),
        (["--task", "piqa:m=3"], "quality task 'piqa' has no option 'm'"),
        (["--with", "weight_format=int5"], "no weight format named 'int5'"),
    ],
)
def test_mistakes_of_the_command(
    more: list[str],
    message: str,
    models: list[tuple[Path, PreTrainedModel]],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NONET_DATA", str(data))
    line = ["bench", "quality", str(models[0][0]), "--max-model-len", "64", "--num-blocks", "64"]
    line += ["--task", "perplexity:windows=1,window=30"] * (more[0] != "--task")
    assert run([*line, *more]) == 2
    assert message in capsys.readouterr().err
