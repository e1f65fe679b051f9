"""The same tokens whatever the engine does with a request: on real weights, token by token.

float32 must be equal; in bfloat16 runs may part at near ties, and their number is printed. What differs between the two
is kernels, which have tests of their own, so bfloat16 has half the prompts and half the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec import structs

from nonet.core.outputs import RequestOutput
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.data.prompts import PROMPTS
from tests.near_ties import count_flips
from tests.real_models import real_model

PREFACE = (
    "Below is the beginning of a text. Continue it in the same language and style, stay on the subject, "
    "and do not repeat yourself.\n\n"
)
TEXTS = [PREFACE + prompt for prompt in PROMPTS]
ROOMY = {"max_model_len": 256, "num_blocks": 1024, "max_tokens_per_step": 2048, "max_num_seqs": 32}

pytestmark = [pytest.mark.models, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked in one dtype."""

    dtype: str
    texts: list[str]
    num_tokens: int

    @property
    def greedy(self) -> SamplingParams:
        return SamplingParams(
            temperature=0.0, max_tokens=self.num_tokens, ignore_eos=True, logprobs=2
        )

    @property
    def sampled(self) -> SamplingParams:
        return structs.replace(self.greedy, temperature=0.8, top_p=0.95, seed=7)

    @property
    def few_blocks(self) -> int:
        """Too few for all texts at once."""
        return 2 * len(self.texts)

    def llm(self, **changes: object) -> LLM:
        return LLM(str(real_model("smollm2")), dtype=self.dtype, **{**ROOMY, **changes})


FLOAT32 = Work("float32", TEXTS, 64)
BFLOAT16 = Work("bfloat16", TEXTS[::2], 32)


@pytest.fixture(scope="module", params=[FLOAT32, BFLOAT16], ids=lambda work: work.dtype)
def work(request: pytest.FixtureRequest) -> Work:
    found: Work = request.param
    return found


@pytest.fixture(scope="module")
def base(work: Work) -> dict[str, list[RequestOutput]]:
    """All prompts in one batch, each prefilled whole, nothing cached before."""
    with work.llm(prefix_cache=False) as llm:
        return {
            "greedy": llm.generate(work.texts, work.greedy),
            "sampled": llm.generate(work.texts, work.sampled),
        }


def _compare(work: Work, base: list[RequestOutput], other: list[RequestOutput], what: str) -> None:
    flips = count_flips(base, other)
    print(f"{what}, {work.dtype}: {flips} of {len(base)} requests part at a near tie")
    assert flips <= (0 if work is FLOAT32 else len(base) // 4)


def test_chunked_equals_whole(work: Work, base: dict[str, list[RequestOutput]]) -> None:
    with work.llm(prefix_cache=False, max_tokens_per_step=33) as llm:
        chunked = llm.generate(work.texts, work.greedy)
        _compare(work, base["greedy"], chunked, "chunked = whole")


def test_prefix_hit_equals_miss(work: Work, base: dict[str, list[RequestOutput]]) -> None:
    with work.llm(prefix_cache=True) as llm:
        llm.generate(work.texts[:1], work.greedy)
        warm = llm.generate(work.texts, work.greedy)
        assert all(output.num_cached >= 16 for output in warm), "no prefix was reused"
        _compare(work, base["greedy"], warm, "prefix hit = miss")


def test_alone_equals_batched(work: Work, base: dict[str, list[RequestOutput]]) -> None:
    with work.llm(prefix_cache=False, max_num_seqs=1) as llm:
        alone = llm.generate(work.texts, work.greedy)
        _compare(work, base["greedy"], alone, "alone = batched")


def test_preempted_equals_uninterrupted(work: Work, base: dict[str, list[RequestOutput]]) -> None:
    with work.llm(prefix_cache=False, num_blocks=work.few_blocks) as llm:
        outputs = llm.generate(work.texts, work.greedy)
        assert llm.engine.stats().preemptions > 0, "nothing was preempted"
        _compare(work, base["greedy"], outputs, "preempted = uninterrupted")


def test_sampling_does_not_depend_on_the_batch(
    work: Work, base: dict[str, list[RequestOutput]]
) -> None:
    with work.llm(prefix_cache=False, num_blocks=work.few_blocks, max_tokens_per_step=33) as llm:
        outputs = llm.generate(list(reversed(work.texts)), work.sampled)
        outputs.reverse()
        same = sum(
            a.outputs[0].token_ids == b.outputs[0].token_ids
            for a, b in zip(base["sampled"], outputs, strict=True)
        )
        num = len(work.texts)
        print(f"sampled with a seed, {work.dtype}: {same} of {num} requests equal")
        assert same >= (num if work is FLOAT32 else num * 3 // 4)


@pytest.mark.parametrize("work", [FLOAT32], ids=["float32"], indirect=True, scope="module")
def test_plain_kernels_equal_the_chosen_ones(
    work: Work, base: dict[str, list[RequestOutput]]
) -> None:
    """In bfloat16 plain torch rounds every activation: other arithmetic, not another schedule."""
    with work.llm(prefix_cache=False, kernels="reference") as llm:
        some = 4  # plain torch is slow, and every operation has tests of its own
        plain = llm.generate(work.texts[:some], work.greedy)
        _compare(work, base["greedy"][:some], plain, "reference = chosen kernels")


def test_recorded_equals_eager(work: Work, base: dict[str, list[RequestOutput]]) -> None:
    with work.llm(prefix_cache=False, recording=False) as llm:
        eager = llm.generate(work.texts, work.greedy)
        _compare(work, base["greedy"], eager, "recorded = eager")
