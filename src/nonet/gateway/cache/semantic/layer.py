"""The semantic cache: a question that means what an answered one meant may get its answer, within a bound on errors.

Idea: the nearest answered question of the same tenant, model, system prompt, history, tools, format and sampling is
    found by the angle between sentence vectors. Gates read from the words what angles do not tell (negations, numbers,
    units, dates, names, code, directions, reversals), each entry learns from verified answers how alike a question must
    be and which words do no harm, and nothing is served before verified answers prove that fewer than delta of the hits
    are false. A share of the hits is verified for ever; a partition that breaks its bound is switched off.
Reference: vCache, arXiv 2502.03771 (a threshold per entry, learned against a bound).
Cost: a sentence vector per question, a few milliseconds on one core, and two per verified answer; about 300 verified
    answers per partition before the first hit at delta 1 %; the encoder's 91 MB. Lossy, within the bound.
Good for: many users who ask the same few hundred things in their own words, under one system prompt.
Conflicts: none; asks with tools, several choices or sampled answers pass by unless that is asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nonet.embed import EMBEDDERS
from nonet.embed.base import Embedder
from nonet.gateway.answer import Ask, Outcome, Reply, Usage
from nonet.gateway.cache.flight import Flight, finish_of, replayed
from nonet.gateway.cache.key import is_deterministic, partition_key
from nonet.gateway.cache.semantic.evidence import Evidence
from nonet.gateway.cache.semantic.finder import Finder, Found
from nonet.gateway.cache.semantic.judge import agree, is_equal
from nonet.gateway.cache.semantic.partition import Look, Partition, Question, Rules
from nonet.gateway.cache.semantic.records import Records
from nonet.gateway.cache.semantic.settings import Settings
from nonet.gateway.cache.shelf import Shelf, ShelfLimits
from nonet.gateway.cache.stored import Entry, decode_steps, encode_answer
from nonet.gateway.cache.tier import SqliteTier
from nonet.gateway.pipeline import Next
from nonet.gateway.site import Site
from nonet.telemetry.events import Saving
from nonet.weights.packaged import resolve_model

__all__ = ["SemanticCache"]

MIB = 1024 * 1024

NOTHING = Look()

logger = logging.getLogger("nonet.gateway")


class SemanticCache:
    """Answers of questions that mean the same."""

    name = "semantic"

    Config = Settings

    def __init__(
        self,
        config: Settings,
        site: Site,
        embedder: Embedder | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        if embedder is None:
            embedder = EMBEDDERS.load("bert").open(resolve_model(config.embedder))
        self._config = config
        self._site = site
        self._dice = dice
        self._rules = Rules(
            delta=config.delta,
            confidence=config.confidence,
            min_similarity=config.min_similarity,
            gates=config.chosen_gates,
        )
        limits = ShelfLimits(
            ttl_s=config.ttl_s,
            memory_bytes=int(config.memory_mib * MIB),
            disk_bytes=int(config.disk_mib * MIB),
        )
        database = site.database if config.disk_mib else None
        tier = SqliteTier(database, "semantic_answer") if database is not None else None
        self._shelf = Shelf(limits, site.wall, tier)
        self._records = Records(database) if database is not None else None
        self._finder = Finder(embedder, config.exact_up_to)
        self._partitions: dict[bytes, Partition] = {}
        self._used: OrderedDict[bytes, bytes] = (
            OrderedDict()
        )  # entry -> partition, the oldest first
        self._flights: set[Flight] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._num_purges = 0

    async def start(self) -> None:
        await self._shelf.start()
        if self._records is None:
            return
        questions, partitions = await self._records.load()
        rules = self._rules
        for kept in partitions:
            proof = Evidence(rules.delta, rules.confidence, kept.state, kept.bets, kept.recent)
            self._partitions[kept.part] = Partition(rules, kept.tenant, proof)
        stale = []
        for row in questions:
            if not self._shelf.has(row.question.key):
                stale.append(row.question.key)
                continue
            self._partition(row.part, row.tenant).add(row.question)
            self._finder.add(row.part, [(row.question.key, row.vector)])
            self._used[row.question.key] = row.part
        self._records.drop(stale)
        self._make_room()

    async def close(self) -> None:
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        self._finder.close()

    async def settled(self) -> None:
        """Wait until every answer so far has been compared and learned from."""
        while self._settling:
            await asyncio.gather(*self._settling)

    def show(self) -> dict[str, Any]:
        states = [partition.evidence.state for partition in self._partitions.values()]
        counts = {state: states.count(state) for state in ("proving", "serving", "off")}
        return {**self._shelf.show(), "partitions": counts}

    def count(self, tenant: str | None = None) -> int:
        return sum(
            len(partition.questions)
            for partition in self._partitions.values()
            if tenant in (None, partition.tenant)
        )

    def purge(self, tenant: str | None = None) -> int:
        """Drop everything, or one tenant's, what was learned and what was switched off with it."""
        count = self.count(tenant)
        self._num_purges += 1
        for flight in self._flights:
            flight.make_private()
        for part, partition in list(self._partitions.items()):
            if tenant in (None, partition.tenant):
                for key in list(partition.questions):
                    self._forget(part, key)
                self._partitions.pop(part, None)
                if self._records is not None:
                    self._records.drop_partition(part)
        self._shelf.purge(tenant)
        return count

    async def handle(self, ask: Ask, next: Next) -> Reply:
        text = self._question(ask)
        if text is None:
            return await _passed(ask, next)
        part = partition_key(ask, self._site.fingerprint)
        partition = self._partitions.get(part) or Partition(self._rules, ask.caller.tenant)
        if partition.evidence.state == "off":
            return await _passed(ask, next)
        if not partition.questions:  # nothing to find; the vector can wait until there is an answer
            return await self._ask_model(_Asked(ask, part, partition, text), next)
        found = await self._finder.find(part, text)
        if found is None:
            return await _passed(ask, next)
        look = partition.look(found.marks, self._near(part, partition, ask, found))
        if look.fits and partition.evidence.state == "serving" and not self._verifies(ask):
            assert look.question is not None
            entry = await self._entry(look.question.key)
            if entry is not None:
                if entry.key in self._used:
                    self._used.move_to_end(entry.key)
                return _replay(ask, entry, look.similarity)
        return await self._ask_model(_Asked(ask, part, partition, text, found, look), next)

    def _question(self, ask: Ask) -> str | None:
        """The text that is compared; None for an ask that is not for this cache."""
        chat, wishes = ask.conversation, ask.caller.wishes
        if chat is None or not chat.messages or ask.encoder or ask.num_choices != 1:
            return None
        if wishes.no_store or not (wishes.allow_sampled or is_deterministic(ask)):
            return None
        if chat.settings.get("tools") and not self._config.with_tools:
            return None
        last = chat.messages[-1]
        content = last.get("content")
        return content if last.get("role") == "user" and isinstance(content, str) else None

    def _verifies(self, ask: Ask) -> bool:
        return ask.caller.wishes.no_cache or self._dice() < self._config.shadow

    def _near(
        self, part: bytes, partition: Partition, ask: Ask, found: Found
    ) -> list[tuple[Question, float]]:
        near = []
        for key, similarity in found.near:
            question = partition.questions.get(key)
            if question is None:
                continue
            if not self._shelf.has(key):
                self._forget(part, key)
            elif self._shelf.has(key, ask.caller.wishes.max_age_s):
                near.append((question, similarity))
        return near

    async def _entry(self, key: bytes) -> Entry | None:
        return self._shelf.find(key) or (
            await self._shelf.load(key) if self._shelf.may_be_on_disk(key) else None
        )

    async def _ask_model(self, asked: _Asked, next: Next) -> Reply:
        began_s = self._site.clock.now()
        max_bytes = int(self._config.max_entry_mib * MIB)
        flight = Flight(asked.ask, next, max_bytes, partial(self._landed, asked, began_s))
        self._flights.add(flight)
        flight.on_over(partial(self._flights.discard, flight))
        reply = await flight.join()
        below = flight.outcome
        reply.outcome = Outcome(
            cache=below.cache or "miss",
            savings=below.savings,
            total=below.total,
            finish=below.finish,
            headers=below.headers,
        )
        return reply

    def _landed(self, asked: _Asked, began_s: float, flight: Flight) -> None:
        finish = finish_of(flight.steps, asked.ask.num_choices)
        if finish is None:
            return
        seconds = self._site.clock.now() - began_s
        body = encode_answer(flight.steps, flight.usage, finish, seconds)
        answer = "".join(piece.text for step in flight.steps for piece in step)
        task = asyncio.get_running_loop().create_task(self._settle(asked, answer, body))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, asked: _Asked, answer: str, body: bytes) -> None:
        """Compare the model's answer with the entry's, learn, and keep it when it is a new one."""
        num_purges, partition, look = self._num_purges, asked.partition, asked.look
        is_right = False
        if look.question is not None:
            entry = await self._entry(look.question.key)
            if entry is None:
                return
            is_right = await self._is_same(answer, _text_of(entry))
        found = asked.found or await self._finder.find(asked.part, asked.text)
        if num_purges != self._num_purges or found is None:
            return
        if look.question is not None:
            before = partition.evidence.state
            partition.learn(look, is_right)
            self._report(before, partition, asked)
        if not is_right:
            self._keep(asked, found, body)

    async def _is_same(self, one: str, two: str) -> bool:
        if is_equal(one, two):
            return True
        return agree(one, two) and await self._finder.alike(one, two) >= self._config.same_answer

    def _report(self, before: str, partition: Partition, asked: _Asked) -> None:
        evidence, question = partition.evidence, asked.look.question
        if evidence.state != before:
            logger.warning(
                "event=semantic_cache partition=%s state=%s verified=%d false=%d delta=%g",
                asked.part.hex()[:16],
                evidence.state,
                len(evidence.recent),
                evidence.num_false,
                self._config.delta,
            )
        if self._records is not None and question is not None:
            if question.key in partition.questions:
                self._records.learned(question)
            if asked.look.fits:
                self._records.proved(asked.part, partition.tenant, evidence)

    def _keep(self, asked: _Asked, found: Found, body: bytes) -> None:
        key = hashlib.sha256(asked.part + asked.text.encode("utf-8", "surrogatepass")).digest()
        if key in self._used:
            self._forget(self._used[key], key)
        now_s, tenant = self._site.wall(), asked.partition.tenant
        self._shelf.put(Entry.from_body(key, tenant, now_s, body))
        if not self._shelf.has(key):  # larger than the whole shelf
            return
        question = Question(key, asked.text, found.marks, now_s)
        self._partition(asked.part, tenant).add(question)
        self._finder.add(asked.part, [(key, found.vector)])
        self._used[key] = asked.part
        if self._records is not None:
            self._records.put(asked.part, tenant, question, found.vector)
        self._make_room()

    def _partition(self, part: bytes, tenant: str) -> Partition:
        partition = self._partitions.get(part)
        if partition is None:
            partition = self._partitions[part] = Partition(self._rules, tenant)
        return partition

    def _make_room(self) -> None:
        while len(self._used) > self._config.max_entries:
            key, part = next(iter(self._used.items()))
            self._forget(part, key)

    def _forget(self, part: bytes, key: bytes) -> None:
        del self._used[key]
        partition = self._partitions[part]
        partition.remove(key)
        self._finder.remove(part, key)
        self._shelf.drop(key)
        if self._records is not None:
            self._records.drop([key])
        if not partition.questions and not partition.evidence.recent:
            del self._partitions[part]


@dataclass(frozen=True, slots=True)
class _Asked:
    """An ask on its way to the model, with what the cache made of it."""

    ask: Ask
    part: bytes
    partition: Partition
    text: str
    found: Found | None = None
    look: Look = NOTHING


async def _passed(ask: Ask, next: Next) -> Reply:
    """An ask that is not for this cache."""
    reply = await next(ask)
    reply.outcome.cache = reply.outcome.cache or "bypass"
    return reply


def _replay(ask: Ask, entry: Entry, similarity: float) -> Reply:
    """The kept answer; the prompt is the asker's own."""
    whole = Usage(
        prompt_tokens=ask.num_prompt_tokens, completion_tokens=entry.usage.completion_tokens
    )
    outcome = Outcome(
        cache="semantic",
        similarity=similarity,
        savings=[Saving("semantic_cache", seconds=entry.seconds)],
        total=whole,
        finish=entry.finish,
    )
    usage = Usage(prompt_tokens=ask.num_prompt_tokens)
    return Reply(replayed(entry, usage, whole), usage, outcome, pending_bytes=lambda: 0)


def _text_of(entry: Entry) -> str:
    return "".join(piece.text for step in decode_steps(entry) for piece in step)
