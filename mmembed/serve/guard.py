"""What stands before every route: who may ask, how much they may send, and what a browser may do with the answer.

Plain ASGI, for a wrapper around each request and response costs a query more than its search does.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmembed.serve.settings import Settings

COOKIE = "mmembed_token"

OPEN = ("/healthz",)
"""What answers without a token: it says nothing of the data."""

_NOTHING = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""The policy of all that is no page: whatever a file holds, a browser that opens it runs none of it."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Content-Security-Policy": _NOTHING,
    "Cache-Control": "no-store",
}
"""Of every answer that says nothing else."""

_OVERHEAD = 1 << 16  # of a form around its files
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass
class Guard:
    """Lets requests through to `app` that may pass, and adds the headers that keep browsers from harm.

    Attributes:
        held: bytes of the bodies of requests whose answers are not yet there.
    """

    app: ASGIApp
    settings: Settings
    held: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookie = self._cookie(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
                if cookie:
                    found.append("Set-Cookie", cookie)
            await send(message)

        if refusal := self._refusal(scope, headers):
            code, reason = refusal
            more = {"WWW-Authenticate": "Bearer"} if code == 401 else {}
            await JSONResponse({"detail": reason}, code, more)(scope, receive, with_headers)
            return
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, with_headers)
        finally:
            self.held -= body.read

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """The code and the reason, if a request may not pass."""
        host = headers.get("host", "")
        if self.settings.hosts and _name(host) not in self.settings.hosts:
            return 403, f"this server is not called {host!r}: open it by {' or '.join(self.settings.hosts[:2])}"
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and (not host or _place(origin) != host):
            return 403, f"a page of {origin} may not ask here"
        if self.settings.token and scope["path"] not in OPEN and not self._is_known(scope, headers):
            return 401, (
                "a token is needed: open the address that `mmembed serve` printed, or send the header "
                "`Authorization: Bearer TOKEN`"
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.most:
            return 413, self._too_large
        return None

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip()] if kind.lower() == "bearer" else []
        return self._is_token([*given, *_cookies(headers)]) or bool(self._cookie(scope))

    def _is_token(self, given: Iterable[str]) -> bool:
        """Whether the token is among what was given; how long that takes doesn't tell how much of it is right."""
        token = self.settings.token.encode()
        return any(hmac.compare_digest(value.encode("utf-8", "replace"), token) for value in given)

    def _cookie(self, scope: Scope) -> str:
        """The cookie that keeps a token which came in the page's address, "" where none did.

        The page itself is the answer, no redirection: after a link from elsewhere a browser would follow one without
        the cookie that it has just got.
        """
        if not self.settings.token or scope["path"] != "/" or b"token=" not in scope["query_string"]:
            return ""
        if not self._is_token(parse_qs(scope["query_string"].decode("latin-1")).get("token", [])):
            return ""
        return f"{COOKIE}={quote(self.settings.token, safe='')}; Path=/; HttpOnly; SameSite=Strict"

    def hold(self, size: int, more: int) -> None:
        """Count `more` bytes of a body that has `size` with them; what a header says of its length may be wrong, or
        missing.

        Raises:
            HTTPException: 413, the body is too large; 503, all bodies together are.
        """
        self.held += more
        if size > self.most:
            raise HTTPException(413, self._too_large)
        if self.held > self.settings.uploads * self.most:
            raise HTTPException(503, "too many uploads at once: come again in a second", {"Retry-After": "1"})

    @property
    def most(self) -> int:
        """Bytes of a body."""
        return self.settings.max_upload + _OVERHEAD

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.settings.max_upload / 10**6:g} MB: see --max-upload-mb"


class _Body:
    """The body of a request, counted while it is read."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive, self.read = guard, receive, 0

    async def receive(self) -> Message:
        """Its next piece.

        Raises: as of `Guard.hold`.
        """
        message = await self._receive()
        more = len(message.get("body", b""))
        self.read += more
        self._guard.hold(self.read, more)
        return message


def _name(host: str) -> str:
    """A host without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def _place(origin: str) -> str:
    """The host and port of an origin, "" where there is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _cookies(headers: Headers) -> list[str]:
    """The token that a browser kept, if it did."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return []
    return [unquote(found.value)] if found else []
