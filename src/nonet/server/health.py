"""Is it alive, is it ready, what is it, how is it doing: the routes for operators."""

from __future__ import annotations

from nonet.core.errors import UnavailableError
from nonet.core.version import package_version
from nonet.server.call import Call
from nonet.telemetry.metrics import CONTENT_TYPE

__all__ = ["health", "livez", "metrics", "readyz", "version_info"]


async def livez(call: Call) -> None:
    """The server process answers; says nothing about the engine."""
    await call.respond({"status": "alive"})


async def readyz(call: Call) -> None:
    """Requests are taken now: the engine runs and the server is not draining."""
    state = call.state
    if state.is_draining:
        raise UnavailableError("the server is draining")
    if not state.engine.is_ready:
        raise UnavailableError("the engine is not running")
    await call.respond({"status": "ready"})


async def health(call: Call) -> None:
    """As /readyz."""
    await readyz(call)


async def version_info(call: Call) -> None:
    await call.respond({"version": package_version()})


async def metrics(call: Call) -> None:
    await call.respond_bytes(call.state.metrics.render(), content_type=CONTENT_TYPE.encode())
