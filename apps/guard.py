"""What every request passes before the service or the page sees it: who asks, from where, and how much is sent."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse

from v2v.core.errors import V2VError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
"""Names by which a machine calls itself."""

_COOKIE = "v2v_token"
_FOR_ALL = ("/manifest.json",)  # the name of the page; browsers ask for it without cookies
_SMALL = 1 << 20  # bytes of a request that uploads nothing
_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)


class Guard:
    """An ASGI application around another one.

    Args:
        token: what whoever asks must know; None asks nobody, and then only this machine's own names are answered to, so
            that no page from elsewhere can pass for it.
        uploads: the paths that take files.
        largest: bytes that an upload may have.
        room: raises V2VError where an upload of so many bytes cannot be taken.
    """

    def __init__(
        self,
        app: App,
        token: str | None,
        uploads: tuple[str, ...],
        largest: int,
        room: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._app, self._token, self._uploads, self._largest, self._room = app, token, uploads, largest, room

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        refusal: JSONResponse | RedirectResponse | None = self._stranger(scope, headers)
        if refusal is None and self._token is not None and scope["path"] not in _FOR_ALL:
            refusal = self._unknown(scope, headers, self._token)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        uploads = scope["method"] == "POST" and scope["path"] in self._uploads
        if uploads:
            told = headers.get("content-length", "0")
            try:
                self._room(min(int(told), self._largest) if told.isdecimal() else 0)
            except V2VError as error:
                await _error(507, str(error))(scope, receive, send)
                return
        most = self._largest + _SMALL if uploads else _SMALL
        await _Bounded(most, send).run(self._app, scope, receive, headers)

    def _stranger(self, scope: Message, headers: Headers) -> JSONResponse | None:
        """Pages of others may send requests here; their browsers say from where."""
        host = headers.get("host", "")
        if self._token is None and (urlsplit(f"//{host}").hostname or "") not in LOCAL:
            return _error(403, f"this service answers to localhost alone, not to '{host[:100]}'")
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return _error(403, "another site's page has sent this; it is not done")
        return None

    def _unknown(
        self, scope: Message, headers: Headers, token: str
    ) -> JSONResponse | RedirectResponse | None:
        """Whoever knows the token goes on; a link with the token leaves it in the browser."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if _same(query.get("token", [""])[0], token):
            if scope["method"] != "GET":
                return None
            answer = RedirectResponse(scope["path"], 303)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="lax")
            return answer
        kind, _, given = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(_COOKIE, "")
        if (kind.lower() == "bearer" and _same(given, token)) or _same(cookie, token):
            return None
        refusal = _error(
            401,
            "a token is needed: send the header 'Authorization: Bearer TOKEN', or open the address that the service "
            "has printed",
        )
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal


class _Bounded:
    """Passes a request on until it has more bytes than it may, and its answer back with headers of ours."""

    def __init__(self, most: int, send: Send) -> None:
        self._left, self._most, self._send = most, most, send
        self._too_large = self._begun = False

    async def run(self, app: App, scope: Message, receive: Receive, headers: Headers) -> None:
        """Do it."""
        refusal = _error(413, f"too large: at most {self._most} bytes are taken here")
        told = headers.get("content-length", "0")
        if not told.isdecimal() or int(told) > self._most:
            await refusal(scope, receive, self._send)
            return

        async def counted() -> Message:
            message = await receive()
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self._too_large = True
                return {"type": "http.disconnect"}
            return message

        async def answered(message: Message) -> None:
            if self._too_large and not self._begun:
                return
            if message["type"] == "http.response.start":
                self._begun = True
                answer = MutableHeaders(raw=message["headers"])
                answer.setdefault("Content-Security-Policy", _CONTENT)
                answer["X-Content-Type-Options"] = "nosniff"
                answer["Referrer-Policy"] = "no-referrer"
            await self._send(message)

        try:
            await app(scope, counted, answered)
        except Exception:
            if not self._too_large:
                raise
        if self._too_large and not self._begun:
            await refusal(scope, receive, self._send)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)
