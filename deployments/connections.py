"""Limits of a connection's life in the HTTP servers that Ray Serve starts: its own proxy, and those behind HAProxy.

uvicorn waits without end for the rest of a request, and for the first byte of one.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any, ClassVar

from ray.serve._private import replica
from starlette.middleware import Middleware
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from actors.haproxy import HEADERS_S, MAX_CONNECTIONS
from actors.node import ALONE, INSIDE


def watched() -> list[Middleware]:
    """Have the HTTP servers that this process starts watch their connections; called by Ray Serve before each."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{WatchedProtocol.__name__}"
    return []


def stay_inside() -> None:
    """Have this replica listen for calls of other replicas on this machine only, on an embedded node.

    Ray Serve opens that port, to which Ray's token is the key, to every machine.
    """
    if os.environ.get(ALONE) == "0":
        opened = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, address: opened(server, address.replace("[::]", INSIDE))


class WatchedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose connections end when a request's headers take too long, or too many come from one address.

    Behind HAProxy, which counts them itself, all have one address.
    """

    HELD: ClassVar[Counter[str]] = Counter()
    """Open connections by address, in this process."""
    _late: asyncio.TimerHandle | None = None
    _counted: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._wait()
        if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            self._counted = self.client[0] if self.client else ""
            self.HELD[self._counted] += 1
            if self.HELD[self._counted] > int(os.environ.get("RAYAPP_MAX_CONNECTIONS", MAX_CONNECTIONS)):
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._end_wait()
        if self._counted is not None:
            self.HELD[self._counted] -= 1
            if not self.HELD[self._counted]:
                del self.HELD[self._counted]
            self._counted = None
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Give the client its time, from the first byte on, until a request is being answered."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._end_wait()
        elif self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _end_wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
