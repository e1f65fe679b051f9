"""One engine process and the socket to it, on an asyncio loop: start, send, hear, watch, kill.

The socket is read through its event descriptor without a task, so a step's deltas cost one callback.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import zmq

from nonet.core.errors import ConfigError
from nonet.core.messages import EngineMessage, Shutdown
from nonet.engine.wire import EngineFrame, Launch, decode_for_server, encode

__all__ = ["EngineLaunch", "EngineLink"]

MAX_IPC_PATH = 100  # the kernel's limit for a Unix socket path is 108 bytes
SHUTDOWN_GRACE_S = 3.0
LAST_WORDS_S = 0.02  # a Failed sent just before the exit may still be in the socket's buffers

logger = logging.getLogger("nonet.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLaunch:
    """What to run: a factory `module:callable` and its configuration as JSON; `env` is added to the environment."""

    config: bytes
    factory: str = "nonet.engine.process:resolved_engine"
    env: Mapping[str, str] = field(default_factory=dict)


class EngineLink:
    """A started engine process. `on_frame` and `on_exit` are called on the loop; after `close` neither is."""

    def __init__(
        self, on_frame: Callable[[EngineFrame], None], on_exit: Callable[[int], None]
    ) -> None:
        self._on_frame = on_frame
        self._on_exit = on_exit
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1
        self._folder = ""
        self._process: asyncio.subprocess.Process | None = None
        self._exit_watch: asyncio.Task[None] | None = None
        self._stats: psutil.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def folder(self) -> str:
        """Where the socket is; "" before start and after close."""
        return self._folder

    async def start(self, launch: EngineLaunch) -> None:
        """Bind the socket and start the process; it says Ready or Failed later."""
        self._folder = _private_folder()
        address = f"ipc://{self._folder}/engine"
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        self._socket = socket
        self._fd = int(socket.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        spec = Launch(address=address, factory=launch.factory, config=msgspec.Raw(launch.config))
        path = Path(self._folder) / "launch.json"
        path.write_bytes(msgspec.json.encode(spec))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nonet.engine.process",
            str(path),
            stdin=asyncio.subprocess.PIPE,  # its end tells the engine that we are gone
            start_new_session=True,  # Ctrl-C in a terminal is for the server alone
            env={**os.environ, **launch.env},
        )
        self._exit_watch = asyncio.create_task(self._watch_exit(self._process))

    def send(self, message: EngineMessage) -> bool:
        """Queue one message; False when there is no engine to take it."""
        if self._socket is None:
            return False
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        # The descriptor signals edges: sending may swallow one, so look again soon.
        asyncio.get_running_loop().call_soon(self._on_readable)
        return True

    def cpu_s(self) -> tuple[float, bool]:
        """CPU seconds the process has used, and whether it waits for the disk now."""
        try:
            if self._stats is None:
                self._stats = psutil.Process(self.pid)
            with self._stats.oneshot():
                times = self._stats.cpu_times()
                return times.user + times.system, self._stats.status() == psutil.STATUS_DISK_SLEEP
        except psutil.Error:
            return 0.0, False

    def kill(self) -> None:
        """End the process at once; `on_exit` follows."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """Ask the engine to end, wait a little, kill it if it did not, and remove the socket.

        One that does not listen yet, because it loads its model, cannot be asked and has nothing to finish.
        """
        process = self._process
        if process is not None and process.returncode is None:
            if not self.send(Shutdown()):
                process.kill()
            try:
                await asyncio.wait_for(process.wait(), SHUTDOWN_GRACE_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._release()
        if self._exit_watch is not None:
            self._exit_watch.cancel()
            await asyncio.gather(self._exit_watch, return_exceptions=True)
        if process is not None and process.stdin is not None:
            process.stdin.close()

    async def _watch_exit(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        await asyncio.sleep(LAST_WORDS_S)
        self._on_readable()
        if self._socket is not None:
            self._on_exit(code)

    def _on_readable(self) -> None:
        while self._socket is not None:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_for_server(frame)
            except msgspec.DecodeError as error:
                logger.error("event=bad_frame bytes=%d error=%s", len(frame), error)
                self.kill()
                return
            self._on_frame(message)

    def _release(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._socket.close()
            self._socket = None
            self._context.term()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def _private_folder() -> str:
    """A new directory with mode 0700, short enough for a socket path."""
    folder = tempfile.mkdtemp(prefix="nonet-")
    if len(folder) <= MAX_IPC_PATH - len("/engine"):
        return folder
    os.rmdir(folder)
    if not os.path.isdir("/tmp"):
        raise ConfigError(
            f"the temporary directory {tempfile.gettempdir()!r} is too long for a socket path; "
            "set TMPDIR to one of at most 80 characters"
        )
    return tempfile.mkdtemp(prefix="nonet-", dir="/tmp")
