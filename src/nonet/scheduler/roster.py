"""Who waits, who runs, who is leaving: every move of a sequence, and the blocks that go with it."""

from __future__ import annotations

from nonet.kv.cache import KVCache
from nonet.kv.user import PrefixHit
from nonet.scheduler.resources import Resources
from nonet.scheduler.sequence import RequestState, Sequence, Status

__all__ = ["SIBLING", "Roster"]

SIBLING = "the prompt is being computed for another choice of the request"


class Roster:
    """Owner of all unfinished sequences.

    A sequence with rows in flight keeps its blocks until the last of them has landed, also when it was preempted or
    has finished; until then it is *leaving*. `gone` collects what the runner may forget.
    """

    def __init__(self, kv: KVCache, resources: Resources) -> None:
        self._kv = kv
        self.resources = resources
        self.requests: dict[str, RequestState] = {}
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.leaving: dict[int, Sequence] = {}
        self.gone: list[int] = []
        self.num_queued = 0  # requests none of whose sequences has run

    def enter(self, state: RequestState) -> None:
        """A new request: all its sequences wait, those after the first until they can share its prompt."""
        self.requests[state.request.request_id] = state
        self.num_queued += 1
        state.num_unfinished = len(state.sequences)
        leader, *followers = state.sequences
        if self._kv.prefix_cache and leader.num_prompt > self._kv.block_size:
            leader.followers = followers
            for seq in followers:
                seq.blockers.add(SIBLING)
        for seq in state.sequences:
            self.waiting[seq.seq_id] = seq

    def start(self, seq: Sequence, hit: PrefixHit) -> None:
        """From waiting to running, with tables that begin with the hit."""
        seq.move(Status.RUNNING)
        del self.waiting[seq.seq_id]
        self.running[seq.seq_id] = seq
        self._unqueue(seq)
        self.resources.start(seq)
        self._kv.attach(seq, hit)
        seq.num_computed = seq.num_planned = hit.num_tokens
        if seq.num_cached is None:
            seq.num_cached = min(hit.num_tokens, seq.num_prompt)

    def preempt(self, seq: Sequence) -> None:
        """From running back to waiting; what it computed is dropped and will be computed again."""
        seq.move(Status.PREEMPTED)
        del self.running[seq.seq_id]
        self.waiting[seq.seq_id] = seq
        self._leave(seq)

    def finish(self, seq: Sequence) -> None:
        seq.move(Status.FINISHED)
        self.running.pop(seq.seq_id, None)
        self.waiting.pop(seq.seq_id, None)
        self._unqueue(seq)
        self._promote_follower(seq)
        self.resources.leave(seq)
        state = self.requests[seq.request.request_id]
        state.num_unfinished -= 1
        if state.num_unfinished == 0:
            del self.requests[seq.request.request_id]
        self._leave(seq)

    def landed(self, seq: Sequence) -> None:
        """A row of a sequence that no longer runs has come back."""
        if seq.num_in_flight == 0 and seq.seq_id in self.leaving:
            del self.leaving[seq.seq_id]
            self._release(seq)

    def share_prompt(self, seq: Sequence) -> None:
        """Let the other choices run once this one's prompt can be taken from the cache."""
        size = self._kv.block_size
        if seq.num_computed >= (seq.num_prompt - 1) // size * size:
            for follower in seq.followers:
                follower.blockers.discard(SIBLING)
            seq.followers = []

    def check_integrity(self) -> list[str]:
        problems = []
        running, waiting, leaving = set(self.running), set(self.waiting), set(self.leaving)
        if running & waiting or running & leaving:
            problems.append(f"in two places: {sorted(running & (waiting | leaving))}")
        for seq in self.running.values():
            if seq.status is not Status.RUNNING or not self._kv.holds(seq):
                problems.append(f"sequence {seq.seq_id} runs as {seq.status.value}")
        for seq in self.waiting.values():
            is_leaving = seq.seq_id in leaving
            if seq.status not in (Status.WAITING, Status.PREEMPTED) or (
                self._kv.holds(seq) != is_leaving
            ):
                problems.append(f"sequence {seq.seq_id} waits as {seq.status.value}")
        for seq in self.leaving.values():
            if seq.num_in_flight == 0 or not self._kv.holds(seq):
                problems.append(f"sequence {seq.seq_id} is leaving without reason")
        alive = [
            seq
            for state in self.requests.values()
            for seq in state.sequences
            if seq.status is not Status.FINISHED
        ]
        if {seq.seq_id for seq in alive} != running | waiting:
            problems.append("a sequence of an unfinished request neither waits nor runs")
        if sum(state.is_queued for state in self.requests.values()) != self.num_queued:
            problems.append(f"{self.num_queued} requests are counted as queued")
        return problems

    def _leave(self, seq: Sequence) -> None:
        if seq.num_in_flight:
            self.leaving[seq.seq_id] = seq
        else:
            self.leaving.pop(seq.seq_id, None)
            self._release(seq)

    def _release(self, seq: Sequence) -> None:
        if self._kv.holds(seq):
            self._kv.release(seq)
            self.resources.stop(seq)
            self.gone.append(seq.seq_id)
        if seq.status is Status.PREEMPTED:
            seq.forget()

    def _unqueue(self, seq: Sequence) -> None:
        """The request stops being queued when a sequence of it starts, or when the last one is aborted."""
        state = self.requests[seq.request.request_id]
        if state.is_queued and (seq.status is Status.RUNNING or state.num_unfinished == 1):
            state.is_queued = False
            self.num_queued -= 1

    def _promote_follower(self, seq: Sequence) -> None:
        """The first choice ended before its prompt was computed: the next one computes it for the rest."""
        heirs = [heir for heir in seq.followers if heir.status is Status.WAITING]
        seq.followers = []
        if heirs:
            heirs[0].blockers.discard(SIBLING)
            heirs[0].followers = heirs[1:]
