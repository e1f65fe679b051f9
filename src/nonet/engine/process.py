"""The engine process: take messages, step, send what the step brought; no HTTP, no text.

Started as `python -m nonet.engine.process <launch file>` in a fresh interpreter. While there is work the socket is
drained without waiting before every step; when idle the process sleeps in poll. Standard input is a pipe from the
server: its end means that the server is gone, and the process leaves at once, whatever it was doing.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import msgspec
import zmq

from nonet.core.errors import OverloadedError, UserError
from nonet.core.messages import (
    Abort,
    Add,
    Answered,
    Command,
    EngineInfo,
    EngineMessage,
    EngineStats,
    Failed,
    LoadAdapter,
    Outputs,
    Ping,
    Ready,
    Shutdown,
    UnloadAdapter,
)
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.engine.wire import (
    EngineFrame,
    Launch,
    decode_for_engine,
    encode,
    rejection_of,
)

__all__ = ["EngineLike", "main", "resolved_engine", "run_engine"]

STATS_INTERVAL_S = 0.25
ANSWER_POLL_MS = 10  # how often an idle engine looks whether a command is done
EXIT_FAILED = 1
EXIT_ORPHANED = 3

logger = logging.getLogger("nonet.engine")


class EngineLike(Protocol):
    """What the process needs of an engine; `nonet.engine.engine.Engine` is the real one."""

    @property
    def info(self) -> EngineInfo: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def has_commands(self) -> bool: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_ids: list[str], index: int | None = None) -> None: ...
    def command(self, command: Command) -> None: ...
    def answers(self) -> list[Answered]: ...
    def step(self) -> list[SequenceDelta]: ...
    def use_idle(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    def check_integrity(self) -> None: ...
    def close(self) -> None: ...


def run_engine(engine: EngineLike, socket: zmq.Socket[bytes]) -> None:
    """Serve one peer until it sends Shutdown. Errors of the engine go to the caller."""
    _EngineLoop(engine, socket).run()


def resolved_engine(config: bytes) -> EngineLike:
    """The default factory: the real engine from a `Resolved` as JSON."""
    from nonet.config.resolved import Resolved

    assemble = importlib.import_module("nonet.engine.assemble")
    return cast(EngineLike, assemble.build_engine(msgspec.json.decode(config, type=Resolved)))


def main(launch_path: str) -> int:
    """Build the engine named in the launch file and run it; the exit code says how it ended."""
    launch = msgspec.json.decode(Path(launch_path).read_bytes(), type=Launch)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s %(message)s")
    threading.Thread(
        target=_leave_when_orphaned,
        args=(Path(launch_path).parent,),
        name="orphan-watch",
        daemon=True,
    ).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(launch.address)
    engine: EngineLike | None = None
    try:
        module_name, _, attribute = launch.factory.partition(":")
        factory: Callable[[bytes], EngineLike] = getattr(
            importlib.import_module(module_name), attribute
        )
        engine = factory(bytes(launch.config))
        gc.collect()
        gc.freeze()  # what loading made lives as long as the process; do not scan it again
        _send(socket, Ready(info=engine.info))
        run_engine(engine, socket)
        return 0
    except Exception as error:
        is_user_error = isinstance(error, UserError)
        if not is_user_error:
            traceback.print_exc(file=sys.stderr)
        _send(socket, Failed(error=_describe(error), is_user_error=is_user_error))
        return EXIT_FAILED
    finally:
        if engine is not None:
            engine.close()
        socket.close()
        context.term()


class _EngineLoop:
    """The loop and what it must remember between rounds."""

    def __init__(self, engine: EngineLike, socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._stopped = False
        self._ping_waits = False
        self._is_idle = False
        self._can_use_idle = True  # there may be something to do for later
        self._integrity_error: str | None = None
        self._stats_due_s = 0.0

    def run(self) -> None:
        while not self._stopped:
            self._receive(block=self._is_idle and not self._engine.has_work and not self._uses_idle)
            if self._stopped:
                return
            if self._engine.has_work:
                self._is_idle = False
                self._report(self._engine.step())
            elif not self._is_idle:
                self._become_idle()
            elif self._uses_idle:
                self._can_use_idle = self._engine.use_idle()
            if self._engine.has_commands:
                for answer in self._engine.answers():
                    _send(self._socket, answer)
            if self._ping_waits:
                self._send_stats([])

    @property
    def _uses_idle(self) -> bool:
        return self._can_use_idle and not self._engine.has_commands

    def _receive(self, *, block: bool) -> None:
        """Handle all frames that are there; with `block`, wait for the first."""
        if block:
            self._socket.poll(ANSWER_POLL_MS if self._engine.has_commands else None)
        while not self._stopped:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_for_engine(frame)
            except msgspec.DecodeError as error:
                logger.error("event=bad_frame bytes=%d error=%s", len(frame), error)
                continue
            self._handle(message)

    def _handle(self, message: EngineMessage) -> None:
        match message:
            case Add(request=request):
                try:
                    self._engine.add(request)
                except (UserError, OverloadedError) as error:
                    _send(self._socket, rejection_of(request.request_id, error))
            case LoadAdapter() | UnloadAdapter():
                try:
                    self._engine.command(message)
                except UserError as error:
                    _send(self._socket, Answered(message.command_id, error=str(error)))
            case Abort(request_ids=request_ids, index=index):
                self._engine.abort(request_ids, index)
            case Ping():
                self._ping_waits = True
            case Shutdown():
                self._stopped = True

    def _report(self, deltas: list[SequenceDelta]) -> None:
        if self._ping_waits or time.monotonic() >= self._stats_due_s:
            self._send_stats(deltas)
        elif deltas:
            _send(self._socket, Outputs(deltas=deltas))

    def _become_idle(self) -> None:
        """The last work is done: check the books once, and say that nothing runs."""
        self._is_idle = True
        try:
            self._engine.check_integrity()
            self._integrity_error = None
        except AssertionError as error:
            self._integrity_error = str(error) or "check_integrity failed"
            logger.error("event=integrity_error error=%s", self._integrity_error)
        self._send_stats([])

    def _send_stats(self, deltas: list[SequenceDelta]) -> None:
        stats = msgspec.structs.replace(self._engine.stats(), integrity_error=self._integrity_error)
        _send(self._socket, Outputs(deltas=deltas, stats=stats))
        self._stats_due_s = time.monotonic() + STATS_INTERVAL_S
        self._ping_waits = False


def _send(socket: zmq.Socket[bytes], message: EngineFrame) -> None:
    socket.send(encode(message), zmq.NOBLOCK)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _leave_when_orphaned(folder: Path) -> None:
    """The server holds the other end of standard input and never writes to it; `folder` was its to remove."""
    while os.read(0, 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
