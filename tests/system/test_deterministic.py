"""`deterministic`: a request's tokens and log probabilities, bit by bit, whatever runs beside it and however it is cut.

On the CPU with the native kernels, which need no switch; on a GPU with the Triton kernels in fixed order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nonet.core.errors import ConfigError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save

HAS_GPU = torch.cuda.is_available()
FAMILIES = ["llama", "qwen2", "gemma3"]
FEW_BLOCKS = {"num_blocks": 30}
# Its layers with windows take blocks of their own, and it waits for room where others are preempted.
FEW_BLOCKS_OF_GEMMA = {"num_blocks": 100}
# (family, device, dtype)
CASES = [
    ("llama", "cpu", "bfloat16"),
    ("gemma3", "cpu", "float32"),
    *(
        pytest.param(
            (family, "cuda", dtype),
            marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")],
        )
        for family in FAMILIES
        for dtype in ("bfloat16", "float32")
    ),
]
ROOMY = {
    "num_blocks": 1000,
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
    "preempted": {},  # with few blocks
    "eager": {"recording": False},
    "prefix hits": {"prefix_cache": True},
    "drafts verified": {"speculate": "prompt_lookup", "draft_length": "fixed"},
}

# Of each request: its tokens, and for each the log probabilities of the two best, exactly as they came.
Bits = dict[str, list[tuple[int, float, tuple[tuple[int, float], ...]]]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, path in paths.items():
        save(family, path)
    return paths


@dataclass(frozen=True)
class Subject:
    family: str
    folder: Path
    options: dict[str, object]


@pytest.fixture(scope="module", params=CASES, ids=str)
def subject(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Subject:
    family, device, dtype = request.param
    return Subject(family, folders[family], {"device": device, "dtype": dtype})


@pytest.fixture(scope="module")
def base(subject: Subject) -> Bits:
    return run(subject.folder, **subject.options)


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
        assert options.get("num_blocks") != FEW_BLOCKS["num_blocks"] or stats.preemptions > 0
        llm.engine.check_integrity()
    assert all(len(bits) == 24 for bits in found.values())
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_bits_do_not_change(subject: Subject, base: Bits, change: str) -> None:
    changes = CHANGES[change]
    if change == "preempted":
        changes = FEW_BLOCKS_OF_GEMMA if subject.family == "gemma3" else FEW_BLOCKS
    assert run(subject.folder, **subject.options, **changes) == base


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")
@pytest.mark.parametrize("family", FAMILIES)
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
    folders: dict[str, Path], family: str, options: dict[str, str], change: str
) -> None:
    folder = folders[family]
    expected = run(folder, device="cuda", dtype="bfloat16", **options)
    found = run(folder, device="cuda", dtype="bfloat16", **options, **CHANGES[change])
    assert found == expected


def test_another_last_bit_would_be_seen(base: Bits) -> None:
    changed = {name: list(bits) for name, bits in base.items()}
    token_id, logprob, top = changed["r3"][5]
    changed["r3"][5] = (token_id, float(torch.tensor(logprob).nextafter(torch.tensor(0.0))), top)
    assert changed != base


@pytest.mark.parametrize("kernels", ["reference", "padded"])
def test_plain_kernels_are_refused(folders: dict[str, Path], kernels: str) -> None:
    with pytest.raises(ConfigError, match="order of sums follows the size of a step"):
        run(folders["llama"], device="cpu", kernels=kernels)
