"""Long responses: server-sent events, and work that is cancelled when its client hangs up."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import Header, Request
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect

from rayapp.protocol import StreamEvent

T = TypeVar("T")

KEEP_ALIVE = format_sse_event(comment="keep-alive")
"""A comment, which clients skip; proxies close connections that stay silent."""
EVENT_STREAM = EventSourceResponse.media_type
LastEvent = Annotated[str, Header(alias="Last-Event-ID", max_length=100)]
"""Id of the last event that a client that reconnects has; "" for none."""


def server_sent_event(kind: StreamEvent, data: Any, *, id: str | None = None) -> bytes:
    """Encode one server-sent event with JSON data.

    Args:
        kind: the event's type.
        data: what JSON can hold.
        id: what a client that reconnects sends as `Last-Event-ID`.
    """
    return format_sse_event(event=kind, data_str=json.dumps(data), id=id)


def digest_of(data: Any) -> str:
    """An event's id where events are states: the same for the same data, from any gateway."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]


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
