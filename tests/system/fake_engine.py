"""A scripted engine without torch: deterministic tokens, a delay per step, and failures on demand.

Token `i` of choice `c` is a printable byte from a hash of (prompt, seed, c, i), so equal requests get equal answers
whatever runs beside them. Magic prompts make it fail, or say a given text: see `FakeConfig`. Every
sequence holds one block until it ends, and `check_integrity` compares the ledger of blocks with the live sequences.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import time
from dataclasses import dataclass, field

import msgspec

from nonet.core.errors import ContextLengthError, InvalidRequestError, OverloadedError
from nonet.core.messages import (
    AdapterInfo,
    Answered,
    Command,
    EngineInfo,
    EngineStats,
    LoadAdapter,
)
from nonet.core.outputs import FinishReason, SequenceDelta, TokenLogprob
from nonet.core.request import Request

VOCAB_SIZE = 260
BOS_ID = 256
EOS_ID = 257
NUM_BLOCKS = 1024


class FakeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Knobs. A prompt that contains the token sequence of a magic word makes the engine misbehave when it runs it."""

    step_s: float = 0.0
    start_s: float = 0.0
    max_model_len: int = 4096
    max_num_seqs: int = 64
    max_waiting: int = 4096
    start_error: str | None = None
    start_user_error: str | None = None
    eos_every: int = 0  # the n-th output token is end of sequence; 0: never
    die_word: str = "DIE-NOW"  # os._exit in the middle of a step
    raise_word: str = "RAISE-NOW"  # an exception in step
    hang_word: str = "HANG-NOW"  # sleeps for ever
    spin_word: str = "SPIN-NOW"  # one step that computes for spin_s
    spin_s: float = 3.0
    leak_word: str = "LEAK-NOW"  # loses a block
    say_word: str = "SAY-THIS:"  # what follows the last of it, up to a control token, is the answer


def build(config: bytes) -> FakeEngine:
    """The factory that `nonet.engine.process` calls."""
    knobs = msgspec.json.decode(config, type=FakeConfig)
    time.sleep(knobs.start_s)
    if knobs.start_user_error is not None:
        raise InvalidRequestError(knobs.start_user_error)
    if knobs.start_error is not None:
        raise RuntimeError(knobs.start_error)
    return FakeEngine(knobs)


@dataclass
class _Sequence:
    request: Request
    index: int
    block: int
    output_ids: list[int] = field(default_factory=list)
    is_started: bool = False


class FakeEngine:
    """The methods of `nonet.engine.engine.Engine`."""

    def __init__(self, config: FakeConfig) -> None:
        self._config = config
        self._running: dict[tuple[str, int], _Sequence] = {}
        self._waiting: list[tuple[str, int]] = []
        self._requests: dict[str, Request] = {}
        self._free = list(range(NUM_BLOCKS))
        self._steps = 0
        self._step_tokens = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._answers: list[Answered] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="fake",
            max_model_len=self._config.max_model_len,
            vocab_size=VOCAB_SIZE,
            dtype="float32",
            weight_format="dense",
            num_blocks=NUM_BLOCKS,
            block_size=16,
            kv_tokens=NUM_BLOCKS * 16,
            kernels="fake",
            attention="fake",
            reasons={"kernels": "there are none"},
        )

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def has_commands(self) -> bool:
        return bool(self._answers)

    def command(self, command: Command) -> None:
        """Loads and unloads anything; a path that holds "wrong" is refused."""
        if isinstance(command, LoadAdapter) and "wrong" in command.path:
            self._answers.append(Answered(command.command_id, error="that is wrong"))
            return
        info = AdapterInfo(name=command.name, adapter_id=f"{command.name}@fake", rank=4)
        self._answers.append(Answered(command.command_id, adapter=info))

    def answers(self) -> list[Answered]:
        ready, self._answers = self._answers, []
        return ready

    def add(self, request: Request) -> None:
        if len(self._waiting) + request.params.n > self._config.max_waiting:
            raise OverloadedError("the queue is full; try again later", retry_after_s=2.0)
        if not request.prompt_ids:
            raise InvalidRequestError("the prompt is empty", "prompt")
        if len(request.prompt_ids) >= self._config.max_model_len:
            raise ContextLengthError("the prompt is too long", "prompt")
        self._requests[request.request_id] = request
        self._waiting += [(request.request_id, index) for index in range(request.params.n)]

    def abort(self, request_ids: list[str], index: int | None = None) -> None:
        gone = set(request_ids)
        keys = [key for key in [*self._running, *self._waiting] if key[0] in gone]
        for key in keys:
            if index is None or key[1] == index:
                self._end(key)

    def step(self) -> list[SequenceDelta]:
        self._steps += 1
        while self._waiting and len(self._running) < self._config.max_num_seqs and self._free:
            key = self._waiting.pop(0)
            self._running[key] = _Sequence(self._requests[key[0]], key[1], self._free.pop())
        for seq in list(self._running.values()):
            if not seq.is_started:
                self._misbehave(bytes(t for t in seq.request.prompt_ids if t < 256))
        if self._config.step_s:
            time.sleep(self._config.step_s)
        return [self._advance(key, seq) for key, seq in list(self._running.items())]

    def use_idle(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_usage=1.0 - len(self._free) / NUM_BLOCKS,
            blocks_free=len(self._free),
            blocks_total=NUM_BLOCKS,
            steps=self._steps,
            step_tokens=self._step_tokens,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    def check_integrity(self) -> None:
        held = NUM_BLOCKS - len(self._free)
        assert held == len(self._running), f"{held} blocks held by {len(self._running)} sequences"

    def close(self) -> None:
        self._running.clear()

    def _misbehave(self, prompt: bytes) -> None:
        if self._config.die_word.encode() in prompt:
            os._exit(7)
        if self._config.raise_word.encode() in prompt:
            raise RuntimeError("told to fail")
        if self._config.hang_word.encode() in prompt:
            time.sleep(3600)
        if self._config.leak_word.encode() in prompt:
            self._free.pop()
        if self._config.spin_word.encode() in prompt:
            end = time.monotonic() + self._config.spin_s
            while time.monotonic() < end:
                pass

    def _advance(self, key: tuple[str, int], seq: _Sequence) -> SequenceDelta:
        params = seq.request.params
        is_first = not seq.is_started
        if is_first:
            seq.is_started = True
            self._prompt_tokens += len(seq.request.prompt_ids)
            self._step_tokens += len(seq.request.prompt_ids)
        said = self._said(seq.request)
        token_id = (
            next_token(seq.request, seq.index, len(seq.output_ids))
            if said is None
            else [*said, EOS_ID][len(seq.output_ids)]
        )
        every = self._config.eos_every
        if every and not params.ignore_eos and len(seq.output_ids) + 1 >= every:
            token_id = seq.request.eos_ids[0] if seq.request.eos_ids else EOS_ID
        seq.output_ids.append(token_id)
        self._step_tokens += 1
        self._generation_tokens += 1
        finish = self._finish_reason(seq, token_id)
        if finish is not None:
            self._end(key)
        return SequenceDelta(
            request_id=key[0],
            index=key[1],
            token_ids=[] if seq.request.pools else [token_id],
            logprobs=None if params.logprobs is None else [_logprob(token_id, params.logprobs)],
            prompt_logprobs=_prompt_logprobs(seq.request) if is_first and key[1] == 0 else None,
            finish_reason=finish,
            stop_token_id=token_id if finish == "stop" else None,
            num_cached=num_cached(seq.request) if is_first else 0,
            num_leased=num_leased(seq.request) if is_first else [],
            pooled=pooled(seq.request) if is_first and seq.request.pools else None,
        )

    def _said(self, request: Request) -> list[int] | None:
        """The answer that the prompt dictates."""
        text = "".join(map(chr, request.prompt_ids))
        _, word, rest = text.rpartition(self._config.say_word)
        if not word:
            return None
        return [ord(char) for char in itertools.takewhile(lambda char: ord(char) < 256, rest)]

    def _finish_reason(self, seq: _Sequence, token_id: int) -> FinishReason | None:
        params = seq.request.params
        stops = set(params.stop_token_ids)
        if not params.ignore_eos:
            stops |= set(seq.request.eos_ids)
        if token_id in stops and len(seq.output_ids) > params.min_tokens:
            return "stop"
        room = self._config.max_model_len - len(seq.request.prompt_ids)
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        return "length" if len(seq.output_ids) >= limit else None

    def _end(self, key: tuple[str, int]) -> None:
        seq = self._running.pop(key, None)
        if seq is not None:
            self._free.append(seq.block)
        elif key in self._waiting:
            self._waiting.remove(key)
        if not any(other[0] == key[0] for other in [*self._running, *self._waiting]):
            self._requests.pop(key[0], None)


def next_token(request: Request, index: int, position: int) -> int:
    """The scripted token: a lower-case letter or a space."""
    key = f"{request.prompt_ids}|{request.adapter_id}|{request.params.seed}|{index}|{position}".encode()
    return b"abcdefghijklmnopqrstuvwxyz      "[hashlib.sha256(key).digest()[0] % 32]


def num_cached(request: Request) -> int:
    return min(16, len(request.prompt_ids) - 1)


def num_leased(request: Request) -> list[int]:
    """As if nothing but the cached tokens had ever been kept, in blocks of 16."""
    counts, done = [], num_cached(request)
    for lease in request.leases:
        end = lease.num_tokens // 16 * 16
        counts.append(max(0, end - done))
        done = max(done, end)
    return counts


def pooled(request: Request) -> bytes:
    """A vector that follows from the prompt."""
    digest = hashlib.sha512(str(request.prompt_ids).encode()).digest()
    return struct.pack(f"<{len(digest)}f", *(byte - 127.5 for byte in digest))


def _logprob(token_id: int, num_top: int) -> TokenLogprob:
    top = [((token_id + i) % 256, -0.5 - i) for i in range(num_top)]
    return TokenLogprob(token_id, -0.5, 1, top)


def _prompt_logprobs(request: Request) -> list[TokenLogprob | None] | None:
    num_top = request.params.prompt_logprobs
    if num_top is None:
        return None
    return [None, *(_logprob(token_id, num_top) for token_id in request.prompt_ids[1:])]
