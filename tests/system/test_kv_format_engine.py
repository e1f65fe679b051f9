"""The whole engine with each KV format: the same tokens however a request is run, and formats kept apart."""

from __future__ import annotations

import sys
import textwrap
from itertools import chain
from pathlib import Path

import pytest

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.kernels.native import native_available
from nonet.kv.format import KV_FORMATS
from tests.model.families import save

PREFIX = list(range(20, 60))
PROMPTS = [PREFIX + [60 + i, 3 + i, 7] * (4 + i) for i in range(8)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=1)
SHORT = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)
Tokens = list[list[tuple[int, float]]]
ROOMY = {"num_blocks": 300, "max_model_len": 256, "max_num_seqs": 16, "max_tokens_per_step": 512}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path)
    return path


@pytest.fixture(scope="module", params=["int8", "fp8"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def open_llm(folder: Path, **options: object) -> LLM:
    if not native_available()[0]:
        pytest.skip(native_available()[1])
    given = {"dtype": "bfloat16", "kernels": "native", "prefix_cache": False, **ROOMY, **options}
    return LLM(str(folder), **given)


def run(llm: LLM, params: SamplingParams = GREEDY, count: int = len(PROMPTS)) -> Tokens:
    """Tokens and log probabilities of each request, to the last bit."""
    for number, prompt in enumerate(PROMPTS[:count]):
        llm.engine.add(Request(request_id=f"r{number}", prompt_ids=list(prompt), params=params))
    found: dict[str, list[tuple[int, float]]] = {f"r{n}": [] for n in range(count)}
    while llm.engine.has_work:
        for delta in llm.engine.step():
            logprobs = [*(delta.prompt_logprobs or []), *(delta.logprobs or [])]
            found[delta.request_id] += [
                (token.token_id, token.logprob) for token in logprobs if token
            ]
        llm.engine.check_integrity()
    return list(found.values())


def token_ids(found: Tokens) -> list[list[int]]:
    return [[token for token, _ in one] for one in found]


@pytest.fixture(scope="module")
def base(folder: Path, name: str) -> Tokens:
    with open_llm(folder, kv_format=name) as llm:
        return run(llm)


def test_chunked_equals_whole(folder: Path, name: str, base: Tokens) -> None:
    with open_llm(folder, kv_format=name, max_tokens_per_step=17) as llm:
        assert run(llm) == base


def test_prefix_hit_equals_miss(folder: Path, name: str, base: Tokens) -> None:
    with open_llm(folder, kv_format=name, prefix_cache=True) as llm:
        assert run(llm) == base
        assert run(llm) == base
        assert llm.engine.stats().prefix_hit_tokens >= 32 * len(PROMPTS)


def test_preempted_equals_uninterrupted(folder: Path, name: str, base: Tokens) -> None:
    has_windows = (
        "gemma3" in folder.name
    )  # six groups; windows give back more blocks than new tokens take
    num_blocks = 50 if has_windows else 24
    with open_llm(folder, kv_format=name, num_blocks=num_blocks, max_model_len=128) as llm:
        assert run(llm) == base
        assert has_windows or llm.engine.stats().preemptions > 0


def test_alone_and_unrecorded_equals_batched(folder: Path, name: str, base: Tokens) -> None:
    with open_llm(folder, kv_format=name, max_num_seqs=1, recording=False) as llm:
        assert run(llm) == base


def test_formats_change_little_but_something(folder: Path, name: str, base: Tokens) -> None:
    """The option reaches the cache: prompts' tokens keep their probabilities nearly, not exactly."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)

    with open_llm(folder) as plain, open_llm(folder, kv_format=name) as rounded:
        pairs = list(zip(chain(*run(plain, params)), chain(*run(rounded, params)), strict=True))
    assert len(pairs) == sum(map(len, PROMPTS)) - len(PROMPTS)
    assert 0 < max(abs(a[1] - b[1]) for a, b in pairs) < 0.4


def test_reference_and_native_agree(folder: Path, name: str) -> None:
    with open_llm(folder, kv_format=name, dtype="float32") as native:
        found = run(native, SHORT, 4)
    with open_llm(folder, kv_format=name, dtype="float32", kernels="reference") as reference:
        expected = run(reference, SHORT, 4)
    same = sum(a == b for a, b in zip(token_ids(found), token_ids(expected), strict=True))
    assert same >= 3  # a code may go the other way where float32 sums differ


def test_prefix_hashes_of_engines_with_other_formats_share_no_name(folder: Path) -> None:
    names = []
    for kv_format in ("auto", "int8", "fp8"):
        with open_llm(folder, kv_format=kv_format, prefix_cache=True) as llm:
            run(llm)
            published = llm.engine.parts.scheduler._kv._index._blocks
            names.append({key for group in published for key in group})
    assert all(names)
    assert len(set.union(*names)) == sum(map(len, names))


FORMAT_IN_ONE_FILE = '''
"""Four bits and a scale, two numbers in a byte."""

import torch


class Int4:
    name = "int4"
    kernels = ("reference",)

    def entry_bytes(self, head_dim, dtype_bytes):
        return head_dim // 2 + 4

    def quantize(self, entries):
        scales = entries.float().abs().amax(-1) / 7
        codes = (entries / scales.clamp(min=1e-9).unsqueeze(-1)).round().clamp(-7, 7).add(8).byte()
        return codes[..., ::2] | codes[..., 1::2] << 4, scales

    def dequantize(self, codes, scales):
        pairs = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
        return (pairs.float() - 8) * scales.unsqueeze(-1)
'''


def test_a_format_is_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the catalogue learns of it."""
    (tmp_path / "four_bits.py").write_text(textwrap.dedent(FORMAT_IN_ONE_FILE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(KV_FORMATS._entries, "int4", "four_bits:Int4")
    plain = {"dtype": "float32", "kernels": "auto"}
    with open_llm(folder, kv_format="int4", **plain, max_tokens_per_step=50) as llm:
        assert llm.resolved.kernels == "reference"
        assert "do not hold KV format int4" in llm.resolved.reasons["kernels"]
        found = token_ids(run(llm, SHORT, 2))
        page = llm.resolved.memory.kv_bytes_per_block
    with open_llm(folder, kv_format="int4", **plain, prefix_cache=True) as llm:
        assert token_ids(run(llm, SHORT, 2)) == found
        assert token_ids(run(llm, SHORT, 2)) == found
        assert llm.engine.stats().prefix_hit_tokens > 0
    with open_llm(folder, dtype="float32") as llm:
        assert llm.resolved.memory.kv_bytes_per_block == page * 64 // 12  # 16 numbers
    with pytest.raises(ConfigError, match="kv_format is int4, which the native kernels do not"):
        open_llm(folder, kv_format="int4", dtype="float32", kernels="native")
    sys.modules.pop("four_bits")


def test_an_unknown_format_is_refused(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="no KV format named 'in8'"):
        open_llm(folder, kv_format="in8")
