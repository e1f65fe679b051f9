"""Endings: which token, which reason, and which comes first."""

from __future__ import annotations

from typing import Any

import pytest

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.scheduler.sequence import Sequence
from nonet.scheduler.stop import Ending, extend, stop_ids_of


def make_sequence(max_len: int = 10, **params: Any) -> Sequence:
    request = Request(
        request_id="r", prompt_ids=[0, 0], params=SamplingParams(**params), eos_ids=(1, 2)
    )
    return Sequence(
        request=request,
        index=0,
        seq_id=0,
        seed=0,
        arrival_s=0.0,
        token_ids=[0, 0],
        num_prompt=2,
        min_len=2 + request.params.min_tokens,
        max_len=max_len,
        stop_ids=stop_ids_of(request),
    )


@pytest.mark.parametrize(
    ("params", "tokens", "kept", "ending"),
    [
        ({}, [5, 6], [5, 6], None),
        ({}, [5, 2, 6], [5, 2], Ending("stop", 2)),
        ({}, [1], [1], Ending("stop", 1)),
        ({"ignore_eos": True}, [1, 2], [1, 2], None),
        ({"ignore_eos": True, "stop_token_ids": [2]}, [1, 2, 3], [1, 2], Ending("stop", 2)),
        ({"stop_token_ids": [5]}, [4, 5], [4, 5], Ending("stop", 5)),
        ({"min_tokens": 1}, [1, 2], [1, 2], Ending("stop", 2)),
        ({"min_tokens": 3}, [1, 1, 1, 1, 1], [1, 1, 1, 1], Ending("stop", 1)),
        ({}, [5] * 9, [5] * 8, Ending("length")),
        ({}, [5] * 7 + [2], [5] * 7 + [2], Ending("stop", 2)),
        ({"min_tokens": 20}, [1] * 9, [1] * 8, Ending("length")),
        ({}, [], [], None),
    ],
)
def test_where_it_ends(
    params: dict[str, Any], tokens: list[int], kept: list[int], ending: Ending | None
) -> None:
    seq = make_sequence(**params)
    assert extend(seq, tokens) == ending
    assert seq.output_ids == kept
    assert seq.prompt_ids == [0, 0]


def test_one_by_one_is_the_same_as_a_run() -> None:
    seq = make_sequence(min_tokens=2)
    endings = [extend(seq, [token]) for token in (1, 5, 2)]
    assert endings == [None, None, Ending("stop", 2)]
