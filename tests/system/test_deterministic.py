"""`deterministic`: a request's tokens and log probabilities, bit by bit, whatever runs beside it and however it is cut.

On the CPU with the native kernels, which need no switch; on a GPU with the Triton kernels in fixed order.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nonet.core.errors import ConfigError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save

HAS_GPU = torch.cuda.is_available()
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")],
)
FAMILIES = ["llama", "qwen2", "gemma3"]
ROOMY = {
    "num_blocks": 200,
    "max_model_len": 256,
    "max_num_seqs": 16,
    "max_tokens_per_step": 512,
    "block_size": 16,
    "prefix_cache": False,
    "deterministic": True,
}
CHANGES = {
    "alone": {"max_num_seqs": 1},
    "in threes": {"max_num_seqs": 3},
    "chunked": {"max_tokens_per_step": 23},
    "preempted": {"num_blocks": 30},
    "eager": {"recording": False},
    "prefix hits": {"prefix_cache": True},
    "drafts verified": {"speculate": "prompt_lookup", "draft_length": "fixed"},
}

# Of each request: its tokens, and for each the log probabilities of the two best, exactly as they came.
Bits = dict[str, list[tuple[int, float, tuple[tuple[int, float], ...]]]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path)
    return path


@pytest.fixture(scope="module", params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(folder: Path, device: str, dtype: str) -> Bits:
    return run(folder, device=device, dtype=dtype)


def requests() -> list[Request]:
    """Greedy and sampled in turn; half of them share a beginning of two blocks."""
    rng = random.Random(4)
    shared = rng.choices(range(3, 199), k=40)
    made = []
    for number in range(12):
        prompt = rng.choices(range(3, 199), k=rng.randint(1, 120))
        params = SamplingParams(
            temperature=0.0 if number % 2 else 0.9,
            top_p=0.9,
            seed=number,
            max_tokens=24,
            ignore_eos=True,
            logprobs=2,
        )
        made.append(
            Request(
                request_id=f"r{number}",
                prompt_ids=shared + prompt if number % 4 < 2 else prompt,
                params=params,
            )
        )
    return made


def run(folder: Path, **options: object) -> Bits:
    with LLM(str(folder), **{**ROOMY, **options}) as llm:
        found: Bits = {}
        for request in requests():
            llm.engine.add(request)
            found[request.request_id] = []
        while llm.engine.has_work:
            for delta in llm.engine.step():
                for one in delta.logprobs or []:
                    top = tuple((token_id, value) for token_id, value in one.top)
                    found[delta.request_id].append((one.token_id, one.logprob, top))
        stats = llm.engine.stats()
        assert options.get("num_blocks") is None or stats.preemptions > 0
        llm.engine.check_integrity()
    assert all(len(bits) == 24 for bits in found.values())
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_bits_do_not_change(folder: Path, device: str, dtype: str, base: Bits, change: str) -> None:
    assert run(folder, device=device, dtype=dtype, **CHANGES[change]) == base


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")
@pytest.mark.parametrize("change", ["alone", "chunked", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_format": "fp8"},
        {"weight_format": "fp8:scale=block"},
        {"weight_format": "int4"},
        {"weight_format": "int8"},
        {"kv_format": "fp8"},
    ],
    ids=str,
)
def test_bits_of_rounded_numbers_do_not_change(
    folder: Path, options: dict[str, str], change: str
) -> None:
    expected = run(folder, device="cuda", dtype="bfloat16", **options)
    found = run(folder, device="cuda", dtype="bfloat16", **options, **CHANGES[change])
    assert found == expected


def test_another_last_bit_would_be_seen(base: Bits) -> None:
    changed = {name: list(bits) for name, bits in base.items()}
    token_id, logprob, top = changed["r3"][5]
    changed["r3"][5] = (token_id, float(torch.tensor(logprob).nextafter(torch.tensor(0.0))), top)
    assert changed != base


def test_plain_kernels_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="order of sums follows the size of a step"):
        run(folder, device="cpu", kernels="reference")
