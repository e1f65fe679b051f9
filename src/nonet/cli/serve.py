"""`nonet serve`: the HTTP server and its engine."""

from __future__ import annotations

import os

from nonet.cli.flags import ENGINE, configured
from nonet.config.load import Loaded

__all__ = ["command"]


def serve(loaded: Loaded) -> int:
    """Serve a model over HTTP."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read by numpy; the cores are the engine's
    from nonet.engine.prepare import resolve_config
    from nonet.server.run import serve as run

    resolved, spec = resolve_config(loaded.config)
    run(loaded.config, resolved, spec)
    return 0


command = configured(serve, *ENGINE, "server", "gateway", model_first=True)
