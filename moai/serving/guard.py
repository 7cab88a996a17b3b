"""What stands in front of the application: who may ask, under which name, how often at a time, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from .chat_messages import describe_error
from .metrics import Metrics
from .settings import ServingSettings

__all__ = ["Guard"]

#: Paths that tell nothing and cost nothing: for probes, and for the page, which asks for the key itself.
_OPEN_PATHS = ("/health", "/ready", "/", "/page/page.js", "/page/page.css", "/page/settings")
_LOCAL_NAMES = {"localhost"}
#: Seconds in which a client may end what it was sending when it is refused.
_DISCARD_S = 5.0


class Guard:
    """ASGI middleware that refuses before anything is read.

    * A request under a foreign name: a web site whose name was made to lead here (DNS rebinding).
    * A request that a browser sends for another site: no site may use the server behind its visitor's back.
    * A request without the API key, where there is one.
    * One more request than are taken at a time, or any while the server ends.
    * A body that is too long, counted as it comes, or that does not come to its end.

    Args:
        app: The application.
        settings: Limits, key and names.
        metrics: Counts requests.
    """

    def __init__(self, app: Any, settings: ServingSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.num_running, self.is_draining = 0, False
        metrics.watch("moai_requests_running", "Requests being read or answered.", lambda: self.num_running)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def counting_send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")  # made up paths must not fill the memory
                self.metrics.count("moai_requests_total", path=path, status=str(message["status"]))
            await send(message)

        if (refusal := self._refuse(scope)) is not None:
            await self._discard(receive)
            await _reply(counting_send, *refusal)
            return
        is_work = scope["method"] == "POST"
        self.num_running += is_work
        try:
            await self.app(scope, self._count_body(receive), counting_send)
        finally:
            self.num_running -= is_work
            if is_work:
                self.metrics.observe("moai_request_seconds", time.perf_counter() - start)

    def _refuse(self, scope: dict[str, Any]) -> tuple[int, str, dict[str, str]] | None:
        """Status, message and headers of a refusal."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_own_name(host):
            return (
                403,
                "expected a request under a name of this server. Start it with --allow-host NAME to add one.",
                {},
            )
        if (origin := headers.get(b"origin")) is not None:
            if origin.decode("latin-1").lower().partition("://")[2] != host:
                return 403, "expected a request of this server's own page, got one of another site.", {}
        if self.settings.api_key is not None and scope["path"] not in _OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.settings.api_key.encode()):
                message = "expected the API key of this server as `Authorization: Bearer KEY`, got none or another."
                return 401, message, {"WWW-Authenticate": "Bearer"}
        if scope["method"] == "POST":
            if self.is_draining:
                return (
                    503,
                    "this server is being ended and takes no further requests. Ask another.",
                    {"Retry-After": "5"},
                )
            if self.num_running >= self.settings.max_queue:
                message = f"{self.settings.max_queue} requests are waiting already. Ask again in a moment."
                return 429, message, {"Retry-After": "1"}
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.settings.max_body_bytes:
            return 413, self._too_long(), {"Connection": "close"}
        return None

    def _is_own_name(self, host: str) -> bool:
        """Whether a Host header names this server: an IP address, which no site can be made to lead here by, or a
        known name.
        """
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name in _LOCAL_NAMES | self.settings.allowed_hosts or "*" in self.settings.allowed_hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _too_long(self) -> str:
        return f"expected a body of at most {self.settings.max_body_bytes} bytes, got more. Send smaller images."

    async def _discard(self, receive: Callable) -> None:
        """Read the rest of a body that nobody wants and keep nothing of it: a client that is still sending would meet
        a closed connection in place of the answer. Only so much and so long; who sends more has been told.
        """
        num_bytes, deadline = 0, time.monotonic() + _DISCARD_S
        try:
            while num_bytes <= 4 * self.settings.max_body_bytes:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
        except TimeoutError:
            return

    def _count_body(self, receive: Callable) -> Callable:
        """``receive`` that counts what comes, within the time that a request has."""
        num_bytes, is_whole = 0, False
        deadline = time.monotonic() + self.settings.request_timeout_s

        async def counting_receive() -> dict[str, Any]:
            nonlocal num_bytes, is_whole
            if is_whole:  # what comes now is that the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                raise HTTPException(408, "expected the whole body in time, got a part. Send it faster.") from error
            num_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if num_bytes > self.settings.max_body_bytes:
                if not is_whole:
                    await self._discard(receive)
                raise HTTPException(413, self._too_long())
            return message

        return counting_receive


async def _reply(send: Callable, status: int, message: str, headers: dict[str, str]) -> None:
    body = json.dumps(describe_error(message, status)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
