"""A runner without a model that trusts nothing: it checks each plan against what a real one would compute.

Its KV memory holds, for each slot, *what* was written there: the group, the adapter and all tokens up to that position.
A read that finds anything else means that a block was reused, never written, or shared by mistake. Its next token is a
hash of all tokens and the seed, so whoever generates the same sequence gets the same tokens, whatever the batch.

Where the plan compacts a sequence, it keeps entries drawn by a hash of the tokens, and from then on expects to find
those and no others; what it stores on top says that it was computed without the rest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from nonet.core.outputs import TokenLogprob
from nonet.core.step import Compaction, NewSequence, Row, RowResult, StepPlan, StepResult
from nonet.kv.cache import KVCache

VOCAB = 50


def next_token(token_ids: list[int], seed: int, adapter_id: str) -> int:
    return _hash(f"{token_ids}|{seed}|{adapter_id}") % VOCAB


def content(token_ids: list[int], adapter_id: str, cache_salt: str, pruned_at: int = 0) -> int:
    """Stands for the keys and values of the last token: they depend on all before it, and on what it could see."""
    past = pruned_at if pruned_at < len(token_ids) else 0
    return _hash(f"{token_ids}|{adapter_id}|{cache_salt}|{past}|kv")


def logprob_of(token_ids: list[int], position: int) -> TokenLogprob:
    """Of the prompt's token at `position`."""
    value = _hash(f"{token_ids[: position + 1]}|logprob") % 1000
    return TokenLogprob(token_ids[position], -value / 100, 1 + value % 7)


@dataclass
class _Known:
    """What the runner keeps of a sequence."""

    new: NewSequence
    token_ids: list[int]
    tables: list[list[int]]
    cache_salt: str
    next_start: int | None = None  # where its next row must begin; None before the first
    kept: list[int] = field(default_factory=list)  # positions that compaction left, if it did
    proposed: tuple[int, tuple[int, ...]] = (0, ())  # tokens known at its last drafts, and these

    @property
    def pruned_at(self) -> int:
        return self.new.num_prompt if self.kept else 0

    def content(self, tokens: list[int]) -> int:
        return content(tokens, self.new.adapter_id, self.cache_salt, self.pruned_at)


class FakeRunner:
    """`launch` runs a step as far as the device would, `collect` hands over the oldest result.

    With `num_drafts` it proposes that many after each sample, some of the first ones right; as a second model would, it
    then uses up to `lookahead` slots past the known tokens, where the sequence has blocks for them. A row that samples
    one of `errors` fails. `salts` tells the salt of a sequence: a real runner has no use for it, this one stores it
    with the content.
    """

    def __init__(
        self,
        kv: KVCache,
        max_num_seqs: int,
        max_tokens: int,
        *,
        max_blocks: int = 1 << 30,
        num_drafts: int = 0,
        lookahead: int = 0,
        errors: frozenset[int] = frozenset(),
    ) -> None:
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.max_tokens = max_tokens
        self.max_blocks = max_blocks  # entries that a row of its block tables holds
        self.num_drafts = num_drafts
        self.lookahead = lookahead
        self.num_ahead = 0  # slots that were there when looked ahead
        self.error_tokens = errors  # a row that samples one of these fails
        self.memory: dict[tuple[int, int], tuple[int, int]] = {}  # block, offset -> group, content
        self.known: dict[int, _Known] = {}
        self.flying: deque[tuple[StepResult, list[tuple[int, set[int]]]]] = deque()
        self.salts: dict[int, str] = {}
        self.seeds: dict[int, int] = {}
        self.max_len = 2**31  # tokens of a sequence
        self.num_accepted = 0
        self.num_verified = 0  # rows with drafts
        self.num_run_ahead = 0  # rows of sequences whose newest token no result had brought yet
        self.num_compacted = 0
        self.num_reused = 0  # blocks that a compaction overwrote
        self.last_step_id = -1

    def launch(self, plan: StepPlan) -> None:
        assert plan.step_id > self.last_step_id
        self.last_step_id = plan.step_id
        assert plan.rows, "an empty step"
        assert 0 < plan.num_tokens <= self.max_tokens, "over the token budget"
        assert len({row.seq_id for row in plan.rows}) == len(plan.rows), "a sequence has two rows"
        for seq_id in plan.gone:
            del self.known[seq_id]
        for new in plan.new:
            self._enter(new)
        assert len(self.known) <= self.max_num_seqs, "more sequences than the runner has room for"
        for update in plan.tables:
            table = self.known[update.seq_id].tables[update.group]
            assert 0 <= update.start <= len(table), "a hole in a block table"
            table[update.start : update.start + len(update.block_ids)] = update.block_ids
            assert len(table) <= self.max_blocks, "a table is longer than the longest sequence"
        unread = {row.seq_id for result, _ in self.flying for row in result.rows if row.token_ids}
        self.num_run_ahead += sum(row.seq_id in unread for row in plan.rows)
        used: list[tuple[int, set[int]]] = []
        for row in plan.rows:
            self._write(row)
        for row in plan.rows:
            used.append((row.seq_id, self._read(row)))
        for compaction in plan.compactions:
            used.append((compaction.seq_id, self._copy(compaction, plan)))
        for compaction in plan.compactions:
            self._mark(compaction)
        outcomes = [self._sample(row) for row in plan.rows]
        self.flying.append((StepResult(step_id=plan.step_id, rows=outcomes), used))

    def collect(self) -> StepResult:
        self.check_in_flight()
        return self.flying.popleft()[0]

    def check_in_flight(self) -> None:
        """No block that a step in flight uses may have been freed."""
        for _, used in self.flying:
            for seq_id, block_ids in used:
                for block_id in block_ids:
                    assert self.kv.pool.blocks[block_id].num_refs > 0, (
                        f"block {block_id} was freed while a step of sequence {seq_id} uses it"
                    )

    def _enter(self, new: NewSequence) -> None:
        assert new.seq_id not in self.known, "a sequence is new twice"
        assert self.seeds.setdefault(new.seq_id, new.seed) == new.seed, "the seed changed"
        self.known[new.seq_id] = _Known(
            new, list(new.token_ids), [[] for _ in self.kv.groups], self.salts.get(new.seq_id, "")
        )

    def _write(self, row: Row) -> None:
        """Store the content of the row's tokens, checking that each slot is this sequence's alone."""
        seq = self.known[row.seq_id]
        stop = row.start + row.num_tokens
        if seq.next_start is None:
            assert row.start < len(seq.token_ids), "the cache claims to hold every token"
        else:
            assert row.start == seq.next_start, f"row starts at {row.start}, not {seq.next_start}"
        assert row.num_tokens > 0
        assert stop <= len(seq.token_ids), "a token nobody knows"
        reaches_end = stop == len(seq.token_ids)
        assert row.num_samples == (1 + len(row.drafts) if reaches_end else 0)
        assert reaches_end or not row.drafts
        if row.drafts:
            known, drafts = seq.proposed
            assert known == stop, "drafts follow an earlier token than the last"
            assert row.drafts == drafts[: len(row.drafts)], "these drafts were not proposed"
            self.num_verified += 1
        self._check_compaction(seq, row, stop)
        tokens = seq.token_ids + list(row.drafts)
        size = self.kv.block_size
        for position in range(row.start, stop + len(row.drafts)):
            value = seq.content(tokens[: position + 1])
            for group, table in enumerate(seq.tables):
                place = self._first_place(row, group) + position - row.start
                assert place // size < len(table), "a write past the block table"
                block_id = table[place // size]
                assert block_id != 0, "a write to the null block"
                block = self.kv.pool.blocks[block_id]
                assert block.num_refs == 1, f"block {block_id} is shared and written"
                assert block.key is None, f"block {block_id} is published and written"
                self.memory[block_id, place % size] = (group, value)

    def _read(self, row: Row) -> set[int]:
        """Check all that the row's tokens see; returns the blocks looked at."""
        seq = self.known[row.seq_id]
        tokens = seq.token_ids + list(row.drafts)
        stop = row.start + row.num_tokens + len(row.drafts)
        size, used = self.kv.block_size, set()
        for group, spec in enumerate(self.kv.groups):
            first = 0 if spec.window is None else max(0, row.start - spec.window + 1)
            positions = list(range(first, stop))
            if seq.kept and spec.window is None:
                positions = [*seq.kept, *range(seq.new.num_prompt, stop)]
            for place, position in enumerate(positions, start=first):
                block_id = seq.tables[group][place // size]
                value = seq.content(tokens[: position + 1])
                assert self.memory.get((block_id, place % size)) == (group, value), (
                    f"sequence {row.seq_id} at {row.start}: block {block_id} of group {group} "
                    f"does not hold token {position}"
                )
                used.add(block_id)
        return used

    def _first_place(self, row: Row, group: int) -> int:
        return row.start if row.kv_start is None else row.kv_start[group]

    def _check_compaction(self, seq: _Known, row: Row, stop: int) -> None:
        """A long prompt is computed up to its end, its last tokens together, then compacted, and only then goes on."""
        rule, end = self.kv.compaction, seq.new.num_prompt
        length = 0 if rule is None or end <= rule.length else rule.length
        if seq.kept:
            assert row.start >= end
            assert len(seq.kept) == length
            dropped = [0 if group.window else end - length for group in self.kv.groups]
            assert row.kv_start == tuple(row.start - count for count in dropped)
            return
        assert row.kv_start is None
        needs_cache = seq.new.params.max_tokens != 1 and end + 1 < self.max_len
        if rule is not None and length and needs_cache:
            in_one = range(end - rule.query_window + 1, end)
            assert row.start not in in_one, "a hit takes part of the query window"
            assert stop not in in_one, "a chunk takes part of the query window"
            assert stop <= end, "the cache was not compacted"

    def _copy(self, compaction: Compaction, plan: StepPlan) -> set[int]:
        """Fill the target blocks, checking that nobody else has them; returns them."""
        seq, rule, size = self.known[compaction.seq_id], self.kv.compaction, self.kv.block_size
        (row,) = [row for row in plan.rows if row.seq_id == compaction.seq_id]
        assert rule is not None
        assert self.kv.groups[compaction.group].window is None
        assert row.start + row.num_tokens == seq.new.num_prompt
        assert row.num_tokens >= rule.query_window, "the query window is not whole"
        assert compaction.length == rule.length < seq.new.num_prompt
        assert len(compaction.block_ids) == -(-rule.length // size)
        table = seq.tables[compaction.group]
        found = [self.memory[table[p // size], p % size] for p in self._choose(seq)]
        for block_id in compaction.block_ids:
            block = self.kv.pool.blocks[block_id]
            assert block.num_refs == 1, f"block {block_id} is shared and written"
            assert block.key is None, f"block {block_id} is published and written"
            self.num_reused += block_id in table
        for place, value in enumerate(found):
            self.memory[compaction.block_ids[place // size], place % size] = value
        return set(compaction.block_ids)

    def _mark(self, compaction: Compaction) -> None:
        seq = self.known[compaction.seq_id]
        self.num_compacted += not seq.kept
        seq.kept = self._choose(seq)

    def _choose(self, seq: _Known) -> list[int]:
        """Positions that stay: drawn by a hash, and the query window always."""
        rule, end = self.kv.compaction, seq.new.num_prompt
        assert rule is not None
        prompt = seq.token_ids[:end]
        order = sorted(range(end - rule.query_window), key=lambda p: _hash(f"{prompt}|{p}|kept"))
        window = range(end - rule.query_window, end)
        return sorted([*order[: rule.length - rule.query_window], *window])

    def _sample(self, row: Row) -> RowResult:
        seq = self.known[row.seq_id]
        stop = row.start + row.num_tokens
        prompt_logprobs = None
        if row.prompt_logprobs:
            last = min(stop, seq.new.num_prompt - 1)
            prompt_logprobs = [logprob_of(seq.token_ids, p) for p in range(row.start + 1, last + 1)]
        if not row.num_samples:
            seq.next_start = stop
            return RowResult(seq_id=row.seq_id, prompt_logprobs=prompt_logprobs)
        sampled: list[int] = []
        for draft in (*row.drafts, None):
            sampled.append(self._next(seq, sampled))
            if sampled[-1] != draft:
                break
        # Also when the row fails: the next step may be under way already and takes what is there.
        seq.token_ids += sampled
        seq.next_start = stop + len(sampled) - 1
        self.num_accepted += len(sampled) - 1
        if self.error_tokens.intersection(sampled):
            return RowResult(seq_id=row.seq_id, error="logits are not numbers")
        return RowResult(
            seq_id=row.seq_id,
            token_ids=sampled,
            num_accepted=len(sampled) - 1,
            prompt_logprobs=prompt_logprobs,
            logprobs=[TokenLogprob(token, -0.5, 1) for token in sampled],
            drafts=self._propose(seq),
        )

    def _next(self, seq: _Known, sampled: list[int]) -> int:
        return next_token(seq.token_ids + sampled, seq.new.seed, seq.new.adapter_id)

    def _propose(self, seq: _Known) -> tuple[int, ...]:
        """Some right tokens, then wrong ones; how many depends on the sequence's tokens."""
        if not self.num_drafts:
            return ()
        self._look_ahead(seq)
        num_right = _hash(f"{seq.token_ids}|right") % (self.num_drafts + 1)
        drafts: list[int] = []
        for i in range(self.num_drafts):
            token = self._next(seq, drafts)
            drafts.append(token if i < num_right else (token + 1) % VOCAB)
        seq.proposed = (len(seq.token_ids), tuple(drafts))
        return tuple(drafts)

    def _look_ahead(self, seq: _Known) -> None:
        """A second model stores the newest token and drafts: nobody else may use these slots."""
        size = self.kv.block_size
        full = [g for g, group in enumerate(self.kv.groups) if group.window is None]
        for group in full[:1]:
            table = seq.tables[group]
            for position in range(len(seq.token_ids) - 1, len(seq.token_ids) + self.lookahead - 1):
                if position // size < len(table) and table[position // size]:
                    block = self.kv.pool.blocks[table[position // size]]
                    assert block.num_refs == 1, "a block to draft in is shared"
                    assert block.key is None, "a block to draft in is published"
                    self.num_ahead += 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")
