"""The guard before every call: who may ask, from which page, how much and how fast; and the headers of every answer.

A page that a browser has open elsewhere can send requests to this machine, under a name of its own that suddenly means
127.0.0.1 (DNS rebinding) or by a form. So the Host must be an address, localhost or this machine's name, which nobody
else can give to a page, and whatever changes something must come from a page of ours and be JSON or an image, which a
form cannot send. Where a token is asked for, it opens everything, and nothing opens without.
"""

import asyncio
import hmac
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermjax.studio.calls import FILE, PICTURE, Refused

JSON_BYTES = 64 * 1024
UPLOAD_BYTES = 16 * 1024 * 1024
SECONDS = 20  # that a body may take to arrive
RATE, BURST = 30.0, 90  # changes a second from one address, and how many may come at once
CLIENTS = 1024  # addresses whose rate is remembered
COOKIE = "dermjax_studio"
LIMITS = {"application/json": JSON_BYTES} | dict.fromkeys((*PICTURE, *FILE), UPLOAD_BYTES)
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """The app behind the guard. token: "" asks for none. names: under which it was told to listen."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str]):
        self.app, self.token = app, token
        self.names = {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *names)}
        self.rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tokens left, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if entered := self._enter(scope):
                await entered(scope, receive, send)
                return
            self._check_token(headers)
            if scope["method"] not in ("GET", "HEAD"):
                self._check_origin(headers)
                self._check_rate((scope.get("client") or ("",))[0])
                receive = _replayed(await _body(headers, receive))
            elif scope["path"].startswith("/api/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                raise Refused("another page asks for this; open the studio itself", 403)
        except Refused as refusal:
            await JSONResponse({"error": str(refusal)}, refusal.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Refuses a Host that a page elsewhere could bear."""
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in self.names and not _is_address(name):
            raise Refused("the studio does not answer to this host name; use the address that it printed", 421)

    def _enter(self, scope: Scope) -> Response | None:
        """The answer to /?token=…: a cookie in its place, so that the token leaves the address; None for all else."""
        if not self.token or scope["method"] != "GET" or scope["path"] != "/":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not given or not self._is_token(given):
            return None
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        return response

    def _check_token(self, headers: Headers) -> None:
        if not self.token:
            return
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if not (kind.lower() == "bearer" and self._is_token(bearer)) and not (cookie and self._is_token(cookie.value)):
            raise Refused("the token is missing or wrong; open the address that the studio printed, token and all", 401)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _check_origin(self, headers: Headers) -> None:
        """Refuses changes that a page of another origin asks for; scripts, which are no page, send no Origin."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        ours = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
        if not ours or site not in ("same-origin", "none"):
            raise Refused("another page asks for this; open the studio itself", 403)

    def _check_rate(self, client: str) -> None:
        left, at = self.rates.pop(client, (float(BURST), time.monotonic()))
        now = time.monotonic()
        left = min(left + (now - at) * RATE, BURST)
        self.rates[client] = (left - (left >= 1), now)  # what is refused does not count
        if len(self.rates) > CLIENTS:
            self.rates.popitem(last=False)
        if left < 1:
            raise Refused(f"too many requests at once; at most {RATE:g} a second", 429)


async def _body(headers: Headers, receive: Receive) -> bytes:
    """The whole body of a request; Refused where it is of another kind, too large or too slow."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in LIMITS:
        raise Refused("send JSON, or an image as PNG or JPEG; nothing else is taken", 415)
    most = LIMITS[kind]
    too_large = Refused(f"too large: at most {most // 1024} KiB of this kind are taken", 413)
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 12 or int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused("the request ended in its middle")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(f"too slow: a request has {SECONDS} seconds to arrive", 408) from None
    return bytes(body)


def _replayed(body: bytes) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    return receive


def _with_headers(send: Send) -> Send:
    """Sends every answer with HEADERS, but for those that it has of its own."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return with_headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
