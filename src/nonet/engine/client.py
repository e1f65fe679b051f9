"""The server's side of the engine process: give it requests, hand out what each step brought, keep it alive.

One callback receives a step's deltas for all requests and puts each into its reader's mailbox; a reader that is
behind finds several steps' deltas at its next turn. No task and no timer exists per token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence

from nonet.core.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    NonetError,
    UnavailableError,
)
from nonet.core.messages import (
    Abort,
    Add,
    Answered,
    Command,
    EngineInfo,
    EngineStats,
    Failed,
    Outputs,
    Ping,
    Ready,
)
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.engine.adapter_registry import AdapterRegistry
from nonet.engine.link import EngineLaunch, EngineLink
from nonet.engine.mailbox import Mailbox
from nonet.engine.supervise import HangWatch, Quarantine, RestartPolicy, Supervision
from nonet.engine.wire import EngineFrame, Rejected, rejection_error

__all__ = ["EngineClient", "EngineLaunch", "Supervision"]

logger = logging.getLogger("nonet.engine")


class EngineClient:
    """An engine process that is restarted when it dies.

    Example::

        client = EngineClient(EngineLaunch(config=msgspec.json.encode(resolved)))
        await client.start()
        async for deltas in client.generate(request):
            ...
        await client.close()
    """

    def __init__(self, launch: EngineLaunch, supervision: Supervision | None = None) -> None:
        self._launch = launch
        self._limits = supervision or Supervision()
        self._restarts = RestartPolicy(self._limits)
        self._quarantine = Quarantine(self._limits)
        self._suspect_gate = asyncio.Lock()  # held by the one suspect that may begin
        self._beginning: Mailbox | None = None
        self._mailboxes: dict[str, Mailbox] = {}
        self._link: EngineLink | None = None
        self._watch: HangWatch | None = None
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._is_ready = False
        self._ended: asyncio.Event = asyncio.Event()
        self._ready: asyncio.Event = asyncio.Event()
        self._failure: Failed | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._num_deaths = 0
        self._is_closed = False
        self.adapters = AdapterRegistry(self._send_command)

    @property
    def info(self) -> EngineInfo:
        """What the engine became; UnavailableError before its first start has finished."""
        if self._info is None:
            raise UnavailableError("the engine is still loading its model; try again shortly")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot that the engine sent, at most a moment old while it works."""
        return self._stats

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    @property
    def num_deaths(self) -> int:
        """How many engine processes have ended unasked."""
        return self._num_deaths

    @property
    def num_in_flight(self) -> int:
        return len(self._mailboxes)

    @property
    def pid(self) -> int:
        """The engine's process id, 0 while there is none."""
        return self._link.pid if self._link is not None else 0

    @property
    def folder(self) -> str:
        """The private directory of the engine's socket, "" while there is none."""
        return self._link.folder if self._link is not None else ""

    async def start(self) -> None:
        """Start the engine and wait until it takes requests. ConfigError when it says that the user must mend
        something, EngineDeadError when it ends or takes longer than the limit; neither is tried again."""
        try:
            await self._start_once()
        except NonetError:
            await self._drop_link()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        self._supervisor.add_done_callback(self._on_unsupervised)

    async def close(self, *, at_once: bool = False) -> None:
        """End the engine, with `at_once` in the middle of its step; requests in flight get EngineDeadError, and so does
        a `start` that is still under way."""
        self._is_closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        self._is_ready = False
        self._fail_all(EngineDeadError("the server is stopping"))
        await self._drop_link(kill=at_once)
        self._ended.set()  # for a start that waits; the link has told nobody

    def generate(
        self, request: Request, *, idle_s: float | None = None
    ) -> AsyncGenerator[list[SequenceDelta], None]:
        """`stream` of one request."""
        return self.stream([request], idle_s=idle_s)

    async def stream(
        self,
        requests: Sequence[Request],
        *,
        idle_s: float | None = None,
        each_step: bool = True,
    ) -> AsyncGenerator[list[SequenceDelta], None]:
        """Run requests together and yield their new deltas, in order, until all choices have finished.

        With `idle_s`, an empty list is yielded when nothing came for about that long. Without `each_step`, what
        follows the first deltas comes in one piece at the end, which costs the caller less. Leaving the iteration
        early, by break, error or cancellation, aborts what is unfinished. Raises what the engine rejected a request
        with (InvalidRequestError, OverloadedError), UnavailableError without a running engine, and EngineDeadError
        when the engine ends in between.
        """
        box = Mailbox(requests, idle_s, each_step=each_step)
        now = time.monotonic()
        is_suspect = any(self._quarantine.suspects(request, now) for request in requests)
        if is_suspect:
            await self._suspect_gate.acquire()
            self._beginning = box
        try:
            self._submit(box)
            while True:
                deltas = await box.take()
                if is_suspect and deltas:  # it began and the engine lives
                    is_suspect = False
                    self._beginning = None
                    self._suspect_gate.release()
                if deltas or not box.is_finished:
                    yield deltas
                if box.is_finished and not box.has_mail:
                    break
        finally:
            if is_suspect:
                self._beginning = None
                self._suspect_gate.release()
            self._leave(box)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its choices; its reader gets no more deltas of it."""
        box = self._mailboxes.get(request_id)
        if box is None:
            return
        box.drop(request_id, index)
        if self._link is not None:
            self._link.send(Abort([request_id], index))

    def pending_bytes(self, request_id: str) -> int:
        """About how much memory the request's unread deltas take."""
        box = self._mailboxes.get(request_id)
        return box.pending_bytes if box is not None else 0

    def _submit(self, box: Mailbox) -> None:
        link = self._link
        if not self._is_ready or link is None:
            if self._is_closed:
                raise UnavailableError("the server is stopping")
            state = "starting" if self._supervisor is None else "being restarted"
            raise UnavailableError(f"the engine is {state}; try again shortly")
        now = time.monotonic()
        for request in box.requests:
            if self._quarantine.refuses(request, now):
                raise InvalidRequestError(
                    "this request was running in several engine failures and is refused for now; change it"
                )
        for request in box.requests:
            self._mailboxes[request.request_id] = box
            link.send(Add(request))

    def _leave(self, box: Mailbox) -> None:
        """The reader is done: forget the box, abort what still runs."""
        for request in box.requests:
            if self._mailboxes.pop(request.request_id, None) is None:
                return  # it was never submitted
        if box.error is None and box.is_finished:
            for request in box.requests:
                self._quarantine.on_success(request)
        unfinished = box.unfinished_ids()
        if unfinished and self._link is not None:
            self._link.send(Abort(unfinished))

    def _on_frame(self, frame: EngineFrame) -> None:
        match frame:
            case Outputs(deltas=deltas, stats=stats):
                if self._watch is not None:
                    self._watch.heard(time.monotonic(), stats)
                if stats is not None:
                    self._stats = stats
                self._deliver(deltas)
            case Rejected(request_id=request_id):
                box = self._mailboxes.get(request_id)
                if box is not None:
                    box.fail(rejection_error(frame))
                    box.drop(request_id, None)
            case Answered():
                self.adapters.answered(frame)
            case Ready(info=info):
                self._info = info
                self._ready.set()
            case Failed():
                self._failure = frame

    def _deliver(self, deltas: list[SequenceDelta]) -> None:
        woken: set[Mailbox] = set()
        for delta in deltas:
            box = self._mailboxes.get(delta.request_id)
            if box is not None and box.put(delta):
                woken.add(box)
        for box in woken:
            box.wake()

    def _on_exit(self, code: int) -> None:
        self._is_ready = False
        self.adapters.fail(EngineDeadError("the engine stopped"))
        said = "" if self._failure is None else self._failure.error
        logger.error("event=engine_exit pid=%d code=%d error=%r", self.pid, code, said)
        self._ended.set()

    async def _start_once(self) -> None:
        self._ended.clear()
        self._ready.clear()
        self._failure = None
        self._link = EngineLink(self._on_frame, self._on_exit)
        await self._link.start(self._launch)
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(
                waits,
                timeout=self._limits.start_limit_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for wait in waits:
                wait.cancel()
        if self._is_closed:
            raise EngineDeadError("the engine was closed while it started")
        if not self._ready.is_set() or self._ended.is_set():
            raise self._start_error()
        self._watch = HangWatch(self._limits, time.monotonic())
        self._stats = EngineStats()
        await self.adapters.restore(self.info)
        if self._ended.is_set():
            raise self._start_error()
        self._is_ready = True

    def _start_error(self) -> NonetError:
        failure = self._failure
        if failure is not None and failure.is_user_error:
            return ConfigError(failure.error)
        if failure is not None:
            return EngineDeadError(f"the engine could not start: {failure.error}")
        if self._ended.is_set():
            return EngineDeadError("the engine process ended while starting; see its log above")
        return EngineDeadError(
            f"the engine was not ready within {self._limits.start_limit_s:.0f} s"
        )

    async def _supervise(self) -> None:
        """Watch the engine; after each death fail its requests, wait, and start another."""
        while True:
            await self._watch_until_ended()
            await self._bury()
            while True:
                delay_s = self._restarts.delay_after_death(time.monotonic())
                logger.warning("event=engine_restart delay_s=%.2f", delay_s)
                await asyncio.sleep(delay_s)
                try:
                    await self._start_once()
                    break
                except NonetError as error:
                    self._num_deaths += 1
                    logger.error("event=engine_start_failed error=%s", error)
                    await self._drop_link()

    def _on_unsupervised(self, task: asyncio.Task[None]) -> None:
        """The supervisor ends by cancellation only; anything else is our defect, and the server is not ready."""
        if not task.cancelled():
            self._is_ready = False
            logger.critical("event=supervisor_failed", exc_info=task.exception())
            self._fail_all(EngineDeadError("the engine is no longer supervised"))

    async def _watch_until_ended(self) -> None:
        link, watch = self._link, self._watch
        assert link is not None
        assert watch is not None
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._limits.tick_s)
            now = time.monotonic()
            if self._ended.is_set():
                return
            cpu_s, waits_for_disk = link.cpu_s()
            reason = watch.tick(now, cpu_s=cpu_s, waits_for_disk=waits_for_disk)
            if reason is not None:
                logger.error("event=engine_hung pid=%d reason=%s", link.pid, reason)
                self._is_ready = False
                return
            if watch.wants_ping(now):
                link.send(Ping())
                watch.pinged(now)
            for box in set(self._mailboxes.values()):
                box.tick(now)

    async def _bury(self) -> None:
        """Everything that follows from one engine's death but the restart."""
        self._is_ready = False
        self._num_deaths += 1
        # A death while a suspect begins is laid to it alone.
        blamed = [self._beginning] if self._beginning else set(self._mailboxes.values())
        self._quarantine.on_death(
            (request for box in blamed for request in box.unfinished_requests()),
            time.monotonic(),
        )
        self._fail_all(EngineDeadError("the engine stopped while this request was running"))
        self._stats = EngineStats()
        await self._drop_link()

    def _send_command(self, command: Command) -> bool:
        return self._link is not None and self._link.send(command)

    def _fail_all(self, error: NonetError) -> None:
        self.adapters.fail(error)
        for box in set(self._mailboxes.values()):
            box.fail(error)

    async def _drop_link(self, *, kill: bool = True) -> None:
        link, self._link = self._link, None
        if link is not None:
            if kill:
                link.kill()
            await link.close()
