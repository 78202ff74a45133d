"""Transport: one HTTP call to the server, with error mapping, retries and streamed bodies.

Belongs to one event loop, on which calls may run concurrently. Knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from rayapp import errors
from rayapp.errors import RayappError

T = TypeVar("T")

ATTEMPTS = 5
"""Attempts of a call that may be retried."""

LONGEST_WAIT = 30.0
"""Upper bound of the wait before the next attempt, in seconds, whatever `Retry-After` says."""

CHUNK = 1 << 20
"""Bytes of a streamed chunk."""

_BY_STATUS: dict[int, type[RayappError]] = {
    400: errors.BadRequest,
    401: errors.NotSignedIn,
    403: errors.NotAllowed,
    404: errors.NotFound,
    406: errors.Disabled,
    409: errors.Conflict,
    413: errors.TooLarge,
    422: errors.Unreadable,
    429: errors.AlreadyRunning,
    502: errors.ArchiveAway,
    503: errors.Busy,
    504: errors.ArchiveSlow,
    507: errors.DiskFull,
}


class Unreachable(RayappError):
    """No server answers at this address, or the connection broke: start the server, or correct the address."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: with JSON, with a form (urlencoded), or with a form and files (multipart).

    Attributes:
        method: The HTTP method.
        path: The path, percent-encoded.
        query: The query's parameters.
        json: The body as JSON.
        form: The body's form fields.
        files: Field name and file of each upload; files are streamed from disk.
        retry_if_refused: Send the call again after the server refused it as busy.
        deduplicated: The call carries a request id by which the server recognises it when it is sent again.
        last_event: Id of the last server-sent event that was received, to go on behind it; "" for none.
        onto: Number of the revision that the call must find as the newest, 0 for none; None for any.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[tuple[str, Path]] | None = None
    retry_if_refused: bool = False
    deduplicated: bool = False
    last_event: str = ""
    onto: int | None = None

    @property
    def idempotent(self) -> bool:
        """True when sending the call twice has the effect of sending it once."""
        return self.deduplicated or self.method in ("GET", "HEAD")


class Transport:
    """A connection pool to one server; an asynchronous context manager."""

    def __init__(self, url: str, *, token: str | None, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise errors.BadRequest(f"server address {url!r} must begin with http:// or https://")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=self._timeout, read_bufsize=CHUNK, middlewares=(_without_resending,)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, call: Call, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """Send a call and read the response.

        Args:
            call: The request.
            read: Consumes the response; called again for each attempt.

        Raises:
            RayappError: The class of `rayapp.errors` that belongs to the status, with the server's text.
            Unreachable: If no attempt reached the server, or the connection broke.
        """
        attempt = 0
        while True:
            attempt += 1
            wait = min(LONGEST_WAIT, 0.1 * 2**attempt) * random.uniform(0.5, 1)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    response = await self._open(call, stack)
                    if response.status < 400:
                        return await read(response)
                    error = await _error_from(response)
                    after = _retry_after(response)
            except (aiohttp.ClientError, TimeoutError) as broken:
                if not call.idempotent or attempt == ATTEMPTS:
                    reason = str(broken) or type(broken).__name__
                    raise Unreachable(f"no answer from {self._url}: {reason}") from broken
            else:
                retry = after is not None and (call.idempotent or call.retry_if_refused)
                if attempt == ATTEMPTS or not retry:
                    raise error
                wait = min(LONGEST_WAIT, after or wait)
            await asyncio.sleep(wait)

    @contextlib.asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a call once and yield the response, to be read as it arrives. Raises what `send` raises."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                response = await self._open(call, stack)
                if response.status >= 400:
                    raise await _error_from(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(f"no answer from {self._url}: {str(error) or type(error).__name__}") from error

    async def _open(self, call: Call, stack: contextlib.AsyncExitStack) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is not connected: use it in `async with`")
        url = URL(self._url + call.path, encoded=True)
        body: dict[str, Any] = {}
        if call.json is not None:
            body = {"json": call.json}
        elif call.files is not None:
            body = {"data": await _multipart(call, stack)}
        elif call.form:
            body = {"data": dict(call.form)}
        headers = {"Last-Event-ID": call.last_event} if call.last_event else {}
        if call.onto is not None:
            headers |= {"If-Match": f'"{call.onto}"'} if call.onto else {"If-None-Match": "*"}
        request = self._session.request(
            call.method, url, params=call.query, headers=headers, allow_redirects=False, **body
        )
        return await stack.enter_async_context(request)


async def _without_resending(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending PUT and DELETE a second time on its own, which it does on the errors caught here."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(str(error)) from error


async def _multipart(call: Call, stack: contextlib.AsyncExitStack) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for name, value in call.form.items():
        form.add_field(name, value)
    for name, path in call.files or ():
        file = stack.enter_context(await asyncio.to_thread(path.open, "rb"))
        form.add_field(name, file, filename=path.name, content_type="application/octet-stream")
    return form


async def read_json(response: aiohttp.ClientResponse) -> Any:
    """The response's JSON."""
    return await response.json(content_type=None)


async def read_text(response: aiohttp.ClientResponse) -> str:
    """The response's text."""
    return await response.text()


async def discard(response: aiohttp.ClientResponse) -> None:
    """Read the response and ignore it."""
    await response.read()


class ServerSentEvent(NamedTuple):
    """One event of a stream: its type, its data, parsed from JSON, and its id ("" for none)."""

    kind: str
    data: Any
    id: str


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[ServerSentEvent, None]:
    """Server-Sent Events of a response. Comments are skipped."""
    rest = b""
    async for chunk in response.content.iter_any():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for event in blocks:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if not line.startswith(b":"))
            if b"data" in fields:
                kind, event_id = fields.get(b"event", b"message").decode(), fields.get(b"id", b"").decode()
                yield ServerSentEvent(kind, json.loads(fields[b"data"]), event_id)


def error_of(status: int, detail: str) -> RayappError:
    """The error of `rayapp.errors` that belongs to an HTTP status."""
    error = _BY_STATUS.get(status, RayappError)(detail)
    error.status = status
    return error


def file_reader(to: Path) -> Callable[[aiohttp.ClientResponse], Awaitable[Path]]:
    """A reader for `Transport.send` that streams the response to the file `to`, or into the folder `to` under the
    server's file name."""

    async def read(response: aiohttp.ClientResponse) -> Path:
        disposition = response.content_disposition
        target = target_path(to, disposition.filename if disposition else None)
        await save_chunks(response.content.iter_chunked(CHUNK).__anext__, target)
        return target

    return read


def target_path(to: Path, name: str | None) -> Path:
    """The file to write: `to` itself or, if it is a folder, the file `name` in it, never outside."""
    if not to.is_dir():
        return to
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", ".."):
        raise Unreachable(f"the server gave the file no usable name ({name!r}): pass a file, not a folder, to write to")
    return to / last


async def save_chunks(next_chunk: Callable[[], Awaitable[bytes]], target: Path) -> None:
    """Write chunks to a temporary file beside `target` and rename it when it is complete."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with await asyncio.to_thread(part.open, "wb") as file, contextlib.suppress(StopAsyncIteration):
            while chunk := await next_chunk():
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(part.replace, target)
    finally:
        part.unlink(missing_ok=True)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds to wait before the next attempt; None if the response is final."""
    if response.status not in (502, 503, 504):
        return None
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return 0.0 if response.status in (502, 504) else None


async def _error_from(response: aiohttp.ClientResponse) -> RayappError:
    text = await response.text(errors="replace")
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = text.strip()[:500] or response.reason or "no reason given"
    if isinstance(detail, list):
        detail = "; ".join(_validation_message(item) for item in detail)
    return error_of(response.status, str(detail))


def _validation_message(item: Any) -> str:
    """One entry of a FastAPI validation error as a line."""
    if not isinstance(item, Mapping):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()))
    return f"{where}: {item.get('msg', item)}"
