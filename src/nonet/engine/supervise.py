"""Rules by which the client judges its engine process: is it hung, when to restart it, which request killed it.

Pure bookkeeping over times that are handed in, so that tests own the clock.

When is an engine hung? It answers Ping between steps only, and one step may rightly take seconds (a long prefill on a
CPU, a first compilation), so silence alone proves nothing. Three rules:

* *dead silence*: a Ping has waited `hang_s`, and in that time the process neither used CPU time nor waited for the
  disk. Stopped and deadlocked processes do neither; a computing one does. This is the fast rule.
* *endless step*: nothing was heard for `step_limit_s`, however busy the process looks.
* *stall*: the engine answers and has work, but its count of computed tokens stands still for `stall_s`.

A tick of our own that comes late proves that we were held up, not the engine, so the late time is not counted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from nonet.core.messages import EngineStats
from nonet.core.request import Request

__all__ = ["HangWatch", "Quarantine", "RestartPolicy", "Supervision", "content_hash"]

CPU_TICK_S = 0.01  # what the kernel counts CPU time in; less is noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Limits of the rules; the defaults notice a stopped engine in under two seconds."""

    tick_s: float = 0.25
    hang_s: float = 1.25
    step_limit_s: float = 300.0
    stall_s: float = 10.0
    start_limit_s: float = 600.0
    backoff_s: float = 0.1
    backoff_max_s: float = 10.0
    breaker_deaths: int = 5
    breaker_window_s: float = 60.0
    breaker_pause_s: float = 30.0
    quarantine_deaths: int = 2
    quarantine_s: float = 600.0


class HangWatch:
    """Decides whether a running engine is hung.

    >>> watch = HangWatch(Supervision(hang_s=1.0, tick_s=0.25), now=0.0)
    >>> watch.pinged(0.0)
    >>> [watch.tick(0.25 * i, cpu_s=3.0, waits_for_disk=False) for i in range(1, 6)][-1]
    'no answer and no CPU time used for 1.0 s'
    """

    def __init__(self, limits: Supervision, now: float) -> None:
        self._limits = limits
        self._last_tick_s = now
        self._heard_s = now  # when the last frame came
        self._moved_s = now  # when the process was last seen to do something
        self._cpu_s = -1.0
        self._ping_s: float | None = None  # when the unanswered Ping was sent
        self._tokens = -1
        self._tokens_s = now  # when the token count last advanced, or there was no work

    def heard(self, now: float, stats: EngineStats | None) -> None:
        """A frame came; `stats` when it carried some."""
        self._heard_s = now
        if stats is None:
            return
        self._ping_s = None
        has_work = stats.num_running + stats.num_waiting > 0
        if stats.step_tokens != self._tokens or not has_work:
            self._tokens = stats.step_tokens
            self._tokens_s = now

    def wants_ping(self, now: float) -> bool:
        """True when nothing was heard for a tick and no Ping is under way."""
        return self._ping_s is None and now - self._heard_s >= self._limits.tick_s

    def pinged(self, now: float) -> None:
        self._ping_s = now

    def tick(self, now: float, *, cpu_s: float, waits_for_disk: bool) -> str | None:
        """Why the engine is hung, or None. Call it every `tick_s` with the process's total CPU time."""
        late_s = now - self._last_tick_s - 2 * self._limits.tick_s
        self._last_tick_s = now
        if late_s > 0:
            self._shift(late_s)
        if waits_for_disk or cpu_s - self._cpu_s > CPU_TICK_S:
            self._moved_s = now
            self._cpu_s = cpu_s
        if self._ping_s is None:
            stalled_s = now - self._tokens_s
            if (
                self._tokens >= 0
                and self._heard_s > self._tokens_s
                and stalled_s > self._limits.stall_s
            ):
                return f"answers, has work, and computed no token for {self._limits.stall_s:.1f} s"
            return None
        if now - max(self._ping_s, self._moved_s) >= self._limits.hang_s:
            return f"no answer and no CPU time used for {self._limits.hang_s:.1f} s"
        if now - self._heard_s >= self._limits.step_limit_s:
            return f"no answer for {self._limits.step_limit_s:.1f} s"
        return None

    def _shift(self, seconds: float) -> None:
        self._heard_s += seconds
        self._moved_s += seconds
        self._tokens_s += seconds
        if self._ping_s is not None:
            self._ping_s += seconds


class RestartPolicy:
    """How long to wait before the next start: exponential backoff, and a pause after too many deaths in a row."""

    def __init__(self, limits: Supervision) -> None:
        self._limits = limits
        self._deaths: deque[float] = deque()

    @property
    def num_recent(self) -> int:
        return len(self._deaths)

    def delay_after_death(self, now: float) -> float:
        """Count one death at `now`; seconds to wait."""
        while self._deaths and now - self._deaths[0] > self._limits.breaker_window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) >= self._limits.breaker_deaths:
            return self._limits.breaker_pause_s
        delay_s = self._limits.backoff_s * 2.0 ** (len(self._deaths) - 1)
        return min(delay_s, self._limits.backoff_max_s)


class Quarantine:
    """Refuses a request that was in flight in several engine deaths; a request that completes is cleared.

    All requests in flight at a death become suspects, the innocent too. So that a second death names the culprit, the
    client lets suspects begin one at a time, and lays a death meanwhile to the one that begins.

    Bounded: the oldest suspects are forgotten first, and every suspicion after `quarantine_s`.
    """

    MAX_SUSPECTS = 4096

    def __init__(self, limits: Supervision) -> None:
        self._limits = limits
        self._suspects: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def on_death(self, requests: Iterable[Request], now: float) -> None:
        for digest in {content_hash(request) for request in requests}:
            deaths, _ = self._current(digest, now)
            self._suspects[digest] = (deaths + 1, now)
            self._suspects.move_to_end(digest)
        while len(self._suspects) > self.MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def on_success(self, request: Request) -> None:
        if self._suspects:
            self._suspects.pop(content_hash(request), None)

    def suspects(self, request: Request, now: float) -> bool:
        """Whether the request was in flight in an engine death and has not completed since."""
        return bool(self._suspects) and self._current(content_hash(request), now)[0] > 0

    def refuses(self, request: Request, now: float) -> bool:
        if not self._suspects:
            return False
        return self._current(content_hash(request), now)[0] >= self._limits.quarantine_deaths

    def _current(self, digest: bytes, now: float) -> tuple[int, float]:
        deaths, at_s = self._suspects.get(digest, (0, now))
        return (0, now) if now - at_s > self._limits.quarantine_s else (deaths, at_s)


def content_hash(request: Request) -> bytes:
    """SHA-256 of everything in a request but its id."""
    anonymous = msgspec.structs.replace(request, request_id="")
    plain = msgspec.to_builtins(anonymous, str_keys=True)
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).digest()
