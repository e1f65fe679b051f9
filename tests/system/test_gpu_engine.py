"""The whole engine on an NVIDIA GPU: its tokens are the CPU's, with graphs and without, whatever the mix."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nonet.core.given_text import GivenText
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save
from tests.model.test_quantized_checkpoints import publish
from tests.system.tiny_text import write_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "mistral"]
ROOMY = {"num_blocks": 200, "max_model_len": 256, "max_num_seqs": 16, "max_tokens_per_step": 512}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path)
    return path


def requests() -> list[Request]:
    rng = random.Random(4)
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    return [
        Request(
            request_id=f"r{number}",
            prompt_ids=rng.choices(range(3, 199), k=rng.randint(1, 120)),
            params=params,
        )
        for number in range(24)
    ]


def run(folder: Path, **options: object) -> dict[str, list[int]]:
    with LLM(str(folder), **{**ROOMY, **options}) as llm:
        tokens: dict[str, list[int]] = {}
        for request in requests():
            llm.engine.add(request)
            tokens[request.request_id] = []
        while llm.engine.has_work:
            for delta in llm.engine.step():
                tokens[delta.request_id].extend(delta.token_ids)
        llm.engine.check_integrity()
    return tokens


def test_tokens_equal_the_cpu(folder: Path) -> None:
    expected = run(folder, device="cpu", kernels="reference", dtype="float32")
    found = run(folder, device="cuda", kernels="triton", dtype="float32")
    same = sum(expected[name] == found[name] for name in expected)
    assert same >= len(expected) - 1, (
        f"{same} of {len(expected)} requests equal"
    )  # one near tie is allowed


@pytest.mark.parametrize("kernels", ["padded", "flash"])
def test_tokens_of_the_lowest_rungs_equal_the_cpu(folder: Path, kernels: str) -> None:
    """Their decodes are replayed, steps with chunks never: those ask the device for lengths."""
    expected = run(folder, device="cpu", kernels="reference", dtype="float32")
    found = run(folder, device="cuda", kernels=kernels, dtype="float32")
    same = sum(expected[name] == found[name] for name in expected)
    assert same >= len(expected) - 1, f"{same} of {len(expected)} requests equal"


def test_graphs_equal_eager(folder: Path) -> None:
    graphs = run(folder, device="cuda", kernels="triton", dtype="bfloat16")
    eager = run(folder, device="cuda", kernels="triton", dtype="bfloat16", recording=False)
    assert graphs == eager


@pytest.mark.parametrize("kernels", ["triton", "padded", "flash"])
def test_adapted_graphs_equal_eager(tmp_path: Path, kernels: str) -> None:
    """Also once an adapter of further layers comes, for which the graphs are captured anew; float32, as above."""
    pytest.importorskip("peft", reason="peft writes the adapters")
    from tests.lora_cases import adapt, config

    base = save("llama", tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    adapt(base, config(target_modules=["q_proj", "v_proj"]), tmp_path / "narrow", 1)
    adapt(base, config(r=8), tmp_path / "wide", 2)
    modules = (f"narrow={tmp_path / 'narrow'}", f"wide={tmp_path / 'wide'}")
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    texts = [[3 + (7 * number + place) % 190 for place in range(9)] for number in range(5)]
    kinds: list[list[str | None]] = [
        ["narrow", None, "narrow", None, "narrow"],
        ["narrow", "wide", None, "wide", "narrow"],
        [None] * 5,
    ]
    answers = []
    for changes in ({}, {"recording": False}, {"device": "cpu", "kernels": "reference"}):
        options = {"device": "cuda", "kernels": kernels, "dtype": "float32", **ROOMY, **changes}
        with LLM(str(tmp_path / "base"), lora_modules=modules, **options) as llm:
            answers.append(
                [
                    output.outputs[0].token_ids
                    for names in kinds
                    for output in llm.generate(texts, params, adapter=names)
                ]
            )
    assert answers[0] == answers[1]
    same = sum(mine == theirs for mine, theirs in zip(answers[0], answers[2], strict=True))
    assert same >= len(answers[0]) - 1, f"{same} of {len(answers[0])} requests equal"


def test_crowded_equals_roomy(folder: Path) -> None:
    """Chunks and preemptions; float32, where another batch may flip at most a near tie."""
    roomy = run(folder, device="cuda", kernels="triton", dtype="float32")
    crowded = run(
        folder,
        device="cuda",
        kernels="triton",
        dtype="float32",
        num_blocks=40,
        max_tokens_per_step=24,
    )
    same = sum(roomy[name] == crowded[name] for name in roomy)
    assert same >= len(roomy) - 1


def test_pruned_tokens_equal_the_cpu(folder: Path) -> None:
    """Prompts of up to 120 tokens are cut down to 32 entries; Mistral's layers all have windows and keep theirs."""
    spec = None if folder.name.startswith("mistral") else "snapkv:budget=32,window=8"
    expected = run(folder, device="cpu", kernels="reference", dtype="float32", kv_prune=spec)
    found = run(folder, device="cuda", kernels="triton", dtype="float32", kv_prune=spec)
    same = sum(expected[name] == found[name] for name in expected)
    assert same >= len(expected) - 1, f"{same} of {len(expected)} requests equal"


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


def likelihoods(folder: Path, **options: object) -> torch.Tensor:
    """Log probabilities of a text of 100 tokens, the same for every call."""
    ids = torch.randint(3, 199, (100,), generator=torch.Generator().manual_seed(8)).tolist()
    with LLM(str(folder), **{**ROOMY, **options}) as llm:
        (logits,) = llm.distributions([GivenText([int(one) for one in ids], [])])
    return torch.from_numpy(logits).double().log_softmax(-1)


def test_fp8_weights_from_the_command_line(folder: Path) -> None:
    """Nearer to the reference kernels' fp8 than that is to the unrounded model."""
    rounded = likelihoods(folder, device="cpu", kernels="reference", dtype="float32", quant="fp8")
    found = likelihoods(folder, device="cuda", kernels="triton", dtype="bfloat16", quant="fp8")
    dense = likelihoods(folder, device="cpu", kernels="reference", dtype="float32")
    assert divergence(rounded, found) < divergence(rounded, dense)


@pytest.mark.parametrize("name", ["fp8-output", "fp8-tensor", "ct-float8-dynamic"])
def test_fp8_checkpoints_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """About as near to the reference kernels in float32 as these are in bfloat16; a wrong scale would be far off."""
    publish(name, tmp_path)
    cpu = {"device": "cpu", "kernels": "reference", "quant": "native"}
    kept, narrow = (likelihoods(tmp_path, dtype=one, **cpu) for one in ("float32", "bfloat16"))
    found = likelihoods(tmp_path, device="cuda", kernels="triton", dtype="bfloat16", quant="native")
    assert divergence(kept, found) < 3 * divergence(kept, narrow)
