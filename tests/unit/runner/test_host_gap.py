"""The median of what the device waits for the host between steps."""

from __future__ import annotations

from nonet.runner.host_gap import HostGap


def times(gap: HostGap, seconds: list[float], *, skipped: float = 0.0, counts: bool = True) -> None:
    for number, one in enumerate(seconds):
        gap.began(10.0 * number)
        gap.skip(skipped)
        gap.ended(10.0 * number + one, counts=counts)


def test_it_is_nothing_until_enough_was_seen() -> None:
    gap = HostGap()
    times(gap, [0.25] * 15)
    assert gap.seconds() == 0.0
    times(gap, [0.25])
    assert gap.seconds() == 0.25


def test_one_long_pause_is_not_the_rule_and_old_gaps_fade() -> None:
    gap = HostGap()
    times(gap, [0.25] * 30 + [9.0] + [0.25])
    assert gap.seconds() == 0.25
    times(gap, [0.5] * 64)
    assert gap.seconds() == 0.5


def test_what_is_not_the_hosts_is_taken_off() -> None:
    gap = HostGap()
    gap.skip(1.0)  # nothing began
    times(gap, [0.75] * 16, skipped=0.5)
    assert gap.seconds() == 0.25


def test_pauses_in_which_there_was_nothing_to_do_do_not_count() -> None:
    gap = HostGap()
    times(gap, [5.0] * 40, counts=False)
    for now in range(16):
        gap.ended(float(now), counts=True)  # no results came before it
    assert gap.seconds() == 0.0
