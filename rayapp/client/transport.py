"""Transport: one HTTP call to the server, with its errors, retries and streamed bodies.

Belongs to one event loop; calls may run side by side. Nothing here knows a route.
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
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from rayapp import errors
from rayapp.errors import RayappError

T = TypeVar("T")

ATTEMPTS = 5
"""How often a call that may be repeated is tried."""

LONGEST_WAIT = 30.0
"""Seconds: the most that is waited before the next try, whatever the server says."""

CHUNK = 1 << 20

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
}


class Unreachable(RayappError):
    """No server answers there, or the connection broke off: start the server, or correct the address."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `json`, or `form` (urlencoded), or `form` and `files` (multipart; files are streamed from disk).

    `replayable` says that the server may meet the call twice when it turned it away the first time, `known` that the
    call carries an id by which the server knows it again.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[tuple[str, Path]] | None = None
    replayable: bool = False
    known: bool = False

    @property
    def safe(self) -> bool:
        """True when the call, repeated, changes nothing: it may be, whatever became of it."""
        return self.known or self.method in ("GET", "HEAD")


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
            headers=self._headers, timeout=self._timeout, read_bufsize=CHUNK, middlewares=(_once,)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, call: Call, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """Send `call` and let `read` consume the answer; both anew for every try.

        Raises the class of `rayapp.errors` that belongs to the status, with the server's words; Unreachable.
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
                    error = await _error(response)
                    after = _retry_after(response)
            except (aiohttp.ClientError, TimeoutError) as broken:
                if not call.safe or attempt == ATTEMPTS:
                    reason = str(broken) or type(broken).__name__
                    raise Unreachable(f"no answer from {self._url}: {reason}") from broken
            else:
                turned_away = after is not None and (call.safe or call.replayable)
                if attempt == ATTEMPTS or not turned_away:
                    raise error
                wait = min(LONGEST_WAIT, after or wait)
            await asyncio.sleep(wait)

    @contextlib.asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, to be read as it comes; sent once. Raises as `send`."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                response = await self._open(call, stack)
                if response.status >= 400:
                    raise await _error(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(f"no answer from {self._url}: {str(error) or type(error).__name__}") from error

    async def _open(self, call: Call, stack: contextlib.AsyncExitStack) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use the client in `async with`")
        url = URL(self._url + call.path, encoded=True)
        body: dict[str, Any] = {}
        if call.json is not None:
            body = {"json": call.json}
        elif call.files is not None:
            body = {"data": await _multipart(call, stack)}
        elif call.form:
            body = {"data": dict(call.form)}
        request = self._session.request(call.method, url, params=call.query, allow_redirects=False, **body)
        return await stack.enter_async_context(request)


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending PUT and DELETE a second time by itself: it does so on the errors caught here."""
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
    """The answer's JSON."""
    return await response.json(content_type=None)


async def read_text(response: aiohttp.ClientResponse) -> str:
    """The answer's text."""
    return await response.text()


async def read_nothing(response: aiohttp.ClientResponse) -> None:
    """Drop the answer."""
    await response.read()


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[tuple[str, Any], None]:
    """Server-Sent Events as their kind and their data, which is JSON; comments are left out."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if not line.startswith(b":"))
            if b"data" in fields:
                yield fields.get(b"event", b"message").decode(), json.loads(fields[b"data"])


def problem(status: int, detail: str) -> RayappError:
    """The error that a status stands for."""
    error = _BY_STATUS.get(status, RayappError)(detail)
    error.status = status
    return error


def read_file(to: Path) -> Callable[[aiohttp.ClientResponse], Awaitable[Path]]:
    """A reader that streams the answer to the file `to`, or into the folder `to` under the name the server gives."""

    async def read(response: aiohttp.ClientResponse) -> Path:
        disposition = response.content_disposition
        target = target_of(to, disposition.filename if disposition else None)
        await save(response.content.iter_chunked(CHUNK).__anext__, target)
        return target

    return read


def target_of(to: Path, name: str | None) -> Path:
    """Where to write: `to` itself, or the file `name` in it if it is a folder. A name can never lead out of it."""
    if not to.is_dir():
        return to
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", ".."):
        raise Unreachable(f"the server gave the file no usable name ({name!r}); say which file to write")
    return to / last


async def save(next_chunk: Callable[[], Awaitable[bytes]], target: Path) -> None:
    """Write chunks, until none comes, beside `target` and move the whole file there: no half file ever has its name."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with await asyncio.to_thread(part.open, "wb") as file, contextlib.suppress(StopAsyncIteration):
            while chunk := await next_chunk():
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(part.replace, target)
    finally:
        part.unlink(missing_ok=True)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds after which a turned-away caller may come back; None if the answer is final."""
    if response.status not in (502, 503, 504):
        return None
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return 0.0 if response.status in (502, 504) else None


async def _error(response: aiohttp.ClientResponse) -> RayappError:
    text = await response.text(errors="replace")
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = text.strip()[:500] or response.reason or "no reason given"
    if isinstance(detail, list):
        detail = "; ".join(_problem(item) for item in detail)
    return problem(response.status, str(detail))


def _problem(item: Any) -> str:
    """One entry of a validation error as a line."""
    if not isinstance(item, Mapping):
        return str(item)
    where = ".".join(str(part) for part in item.get("loc", ()))
    return f"{where}: {item.get('msg', item)}"
