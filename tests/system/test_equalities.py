"""The same tokens whatever the engine does with a request: on real weights, token by token.

float32 must be equal; in bfloat16 runs may part at near ties, and their number is printed.
"""

from __future__ import annotations

import pytest

from nonet.core.outputs import RequestOutput
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.data.prompts import PROMPTS
from tests.near_ties import count_flips
from tests.real_models import real_model

NEW_TOKENS = 64
PREFACE = (
    "Below is the beginning of a text. Continue it in the same language and style, stay on the subject, "
    "and do not repeat yourself.\n\n"
)
TEXTS = [PREFACE + prompt for prompt in PROMPTS]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2)
SAMPLED = SamplingParams(
    temperature=0.8, top_p=0.95, seed=7, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2
)
ROOMY = {"max_model_len": 256, "num_blocks": 1024, "max_tokens_per_step": 2048, "max_num_seqs": 32}

pytestmark = [pytest.mark.models, pytest.mark.slow]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(dtype: str) -> dict[str, list[RequestOutput]]:
    """All prompts in one batch, each prefilled whole, nothing cached before."""
    with _llm(dtype, prefix_cache=False) as llm:
        return {"greedy": llm.generate(TEXTS, GREEDY), "sampled": llm.generate(TEXTS, SAMPLED)}


def _llm(dtype: str, **changes: object) -> LLM:
    return LLM(str(real_model("smollm2")), dtype=dtype, **{**ROOMY, **changes})


def _compare(dtype: str, base: list[RequestOutput], other: list[RequestOutput], what: str) -> None:
    flips = count_flips(base, other)
    print(f"{what}, {dtype}: {flips} of {len(base)} requests part at a near tie")
    if dtype == "float32":
        assert flips == 0
    else:
        assert flips <= len(base) // 4


def test_chunked_equals_whole(dtype: str, base: dict[str, list[RequestOutput]]) -> None:
    with _llm(dtype, prefix_cache=False, max_tokens_per_step=33) as llm:
        _compare(dtype, base["greedy"], llm.generate(TEXTS, GREEDY), "chunked = whole")


def test_prefix_hit_equals_miss(dtype: str, base: dict[str, list[RequestOutput]]) -> None:
    with _llm(dtype, prefix_cache=True) as llm:
        llm.generate(TEXTS[:1], GREEDY)
        warm = llm.generate(TEXTS, GREEDY)
        assert all(output.num_cached >= 16 for output in warm), "no prefix was reused"
        _compare(dtype, base["greedy"], warm, "prefix hit = miss")


def test_alone_equals_batched(dtype: str, base: dict[str, list[RequestOutput]]) -> None:
    with _llm(dtype, prefix_cache=False, max_num_seqs=1) as llm:
        _compare(dtype, base["greedy"], llm.generate(TEXTS, GREEDY), "alone = batched")


def test_preempted_equals_uninterrupted(dtype: str, base: dict[str, list[RequestOutput]]) -> None:
    with _llm(dtype, prefix_cache=False, num_blocks=40) as llm:
        outputs = llm.generate(TEXTS, GREEDY)
        assert llm.engine.stats().preemptions > 0, "nothing was preempted"
        _compare(dtype, base["greedy"], outputs, "preempted = uninterrupted")


def test_sampling_does_not_depend_on_the_batch(
    dtype: str, base: dict[str, list[RequestOutput]]
) -> None:
    with _llm(dtype, prefix_cache=False, num_blocks=40, max_tokens_per_step=33) as llm:
        outputs = llm.generate(list(reversed(TEXTS)), SAMPLED)
        outputs.reverse()
        same = sum(
            a.outputs[0].token_ids == b.outputs[0].token_ids
            for a, b in zip(base["sampled"], outputs, strict=True)
        )
        print(f"sampled with a seed, {dtype}: {same} of {len(TEXTS)} requests equal")
        assert same == len(TEXTS) if dtype == "float32" else same >= len(TEXTS) * 3 // 4


@pytest.mark.parametrize("dtype", ["float32"], indirect=True, scope="module")
def test_plain_kernels_equal_the_chosen_ones(
    dtype: str, base: dict[str, list[RequestOutput]]
) -> None:
    """In bfloat16 plain torch rounds every activation: other arithmetic, not another schedule."""
    with _llm(dtype, prefix_cache=False, kernels="reference") as llm:
        some = 4  # plain torch is slow, and every operation has tests of its own
        _compare(
            dtype,
            base["greedy"][:some],
            llm.generate(TEXTS[:some], GREEDY),
            "reference = chosen kernels",
        )


def test_recorded_equals_eager(dtype: str, base: dict[str, list[RequestOutput]]) -> None:
    with _llm(dtype, prefix_cache=False, recording=False) as llm:
        _compare(dtype, base["greedy"], llm.generate(TEXTS, GREEDY), "recorded = eager")
