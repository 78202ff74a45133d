"""Long responses: server-sent events, and work that is cancelled when its client hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect

from rayapp.protocol import StreamEvent

T = TypeVar("T")

KEEP_ALIVE = format_sse_event(comment="keep-alive")
"""A comment, which clients skip; proxies close connections that stay silent."""
EVENT_STREAM = EventSourceResponse.media_type


def server_sent_event(kind: StreamEvent, data: Any) -> bytes:
    """Encode one server-sent event with JSON data."""
    return format_sse_event(event=kind, data_str=json.dumps(data))


def event_stream(events: AsyncIterator[bytes]) -> EventSourceResponse:
    """Stream encoded events; the headers keep proxies from caching or buffering them."""
    return EventSourceResponse(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work on behalf of a client.

    Raises:
        ClientDisconnect: the client hung up first; the work is cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
