"""The page at /: a chat with the served model that shows what each turn cost. Its files hold no data and need no key.

Nothing is loaded from elsewhere, no script stands in the page, and what the model says is put in as text; the content
security policy holds the browser to that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from nonet.server.call import Call

__all__ = ["PAGE_PATHS", "PAGE_ROUTES"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)
FILES = {
    "/": ("page.html", b"text/html; charset=utf-8"),
    "/playground.css": ("page.css", b"text/css; charset=utf-8"),
    "/playground.js": ("page.js", b"text/javascript; charset=utf-8"),
}
PAGE_PATHS = frozenset(FILES)


def _file(name: str, content_type: bytes) -> Callable[[Call], Awaitable[None]]:
    body = files(__name__).joinpath(name).read_bytes()

    async def send(call: Call) -> None:
        await call.respond_bytes(body, content_type=content_type, headers=HEADERS)

    return send


PAGE_ROUTES = tuple(("GET", path, _file(*what)) for path, what in FILES.items())
