"""Running the application: uvicorn, and an end that lets running answers finish."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

__all__ = ["run_app"]


class _Server(uvicorn.Server):
    """uvicorn that refuses new requests on open connections, too, from the first signal on."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_start: Callable[[int], None]) -> None:
        super().__init__(config)
        self._app, self._on_start = app, on_start

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if (guard := self._app.state.guard()) is not None:
            guard.is_draining = True
        super().handle_exit(sig, frame)


def run_app(
    app: FastAPI,
    host: str,
    port: int,
    drain_s: float,
    on_start: Callable[[int], None],
    on_build: Callable[[uvicorn.Server], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what is being answered, take nothing more, and return.

    Args:
        app: From :func:`.app.build_app`.
        host: Address to listen on.
        port: Its port; 0 = any free one.
        drain_s: Seconds that running answers have at the end.
        on_start: Called with the port when requests are taken.
        on_build: Called with the server, whose ``should_exit`` ends it from another thread.

    Raises:
        OSError: The address is not free.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(drain_s) + 1,
    )
    server = _Server(config, app, on_start)
    if on_build is not None:
        on_build(server)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way to say that it could not start; it has logged why
        if not server.started:
            raise OSError(f"expected a free address, got {host}:{port}, which cannot be listened on") from error
        raise
    finally:
        app.state.engine.close()
        sys.stderr.flush()
