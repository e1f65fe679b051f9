"""A batch survives kills of its server; `python benchmarks/batch_kills.py` runs the same with a hundred."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.system.batch_kills import check_all, run_kills


def test_killed_at_random_points(tmp_path: Path) -> None:
    report = run_kills(tmp_path, num_lines=150, num_kills=5, seed=5)
    assert len(report.kills) == 5
    assert (report.num_output, report.num_errors, report.num_billed) == (147, 3, 147)
    assert {kill.num_settled for kill in report.kills} != {150}  # not all after the work was done


def outcome() -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]], list[Any]]:
    """What a sound batch of fifty leaves: the last request is refused."""
    names = [f"line-{number}" for number in range(50)]
    usage = {
        "prompt_tokens": 20, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16},
    }  # fmt: skip
    output = [{"custom_id": name, "response": {"body": {"usage": usage}}} for name in names[:-1]]
    booked = [(name, Decimal("0.0000022")) for name in names[:-1]]
    return names, output, [{"custom_id": names[-1]}], booked


def test_the_check_passes_what_is_sound() -> None:
    check_all(*outcome())


@pytest.mark.parametrize("fault", ["lost", "twice", "moved", "unbilled", "billed_twice", "overcharged"])  # fmt: skip
def test_the_check_notices(fault: str) -> None:
    names, output, errors, booked = outcome()
    match fault:
        case "lost":
            output.pop()
        case "twice":
            output.append(output[0])
        case "moved":
            errors.append(output.pop())
        case "unbilled":
            booked.pop()
        case "billed_twice":
            booked.append(booked[0])
        case "overcharged":
            booked[0] = (booked[0][0], booked[0][1] * 2)
    with pytest.raises(AssertionError):
        check_all(names, output, errors, booked)
