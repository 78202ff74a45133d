"""`/proxy/dicom/{qido,wado,stow}/…`: a proxy to the DICOMweb archive behind this server, for viewers.

Query, Accept header, status and bodies pass unchanged, streamed in both directions (small responses in one piece). Of
the headers only those that DICOMweb needs pass: neither keys nor hop-by-hop headers (RFC 9110 section 7.6.1). Only
paths below the archive's address are reachable, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

import aiohttp
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send
from yarl import URL

from deployments.access import AsAnnotator, AsUser, Service
from deployments.archive_parts import Resource, decoded, encoded, instances_of, own_query, shares_its_series, with_parts
from deployments.problems import problems
from rayapp.config import Settings
from rayapp.datastore.credentials import Credentials
from rayapp.errors import ArchiveAway, ArchiveSlow, BadRequest, NotFound, TooLarge
from rayapp.protocol import Route

router = APIRouter(tags=["archive"], responses=problems(400, 404, 413, 502, 503, 504))

_ASKED = ("accept", "accept-encoding", "if-modified-since", "if-none-match", "range")
_SENT = ("content-length", "content-type")
_ANSWERED = (
    *("accept-ranges", "cache-control", "content-encoding", "content-length", "content-location", "content-range"),
    *("content-type", "etag", "last-modified", "retry-after", "vary", "warning"),
)
_RESOURCES = ("studies", "series", "instances")
_CONNECTIONS = 64
_PIECE = 1 << 18
_SMALL = 1 << 22
"""Bytes of a response that is read completely before it is passed on: a frame, a page of a list."""


class Archive:
    """Connections to the archive, closed with the gateway. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._archive = settings.dicomweb
        self._cap = settings.max_volume
        self._credentials = Credentials(settings.dicomweb)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def relay(
        self, request: Request, path: str, *, query: bytes | None = None, complete: bool = False
    ) -> Response:
        """Pass a request on to the archive and its response back.

        Args:
            request: of the viewer.
            path: below `/proxy/dicom/`.
            query: in place of the request's.
            complete: read all of the response, uncompressed, so that it can be changed.

        Raises:
            NotFound: there is no archive behind this server.
            BadRequest: the path is not one of DICOMweb.
            ArchiveAway, ArchiveSlow: the archive does not answer, answers wrongly or too late.
            TooLarge: its response has more than `max_volume` bytes.
        """
        if not self._archive.url:
            raise NotFound("this server has a studies folder: there is no DICOMweb archive behind it")
        query = request.scope["query_string"] if query is None else query
        url = self._url(path, query, post=request.method == "POST")
        asked = (*_ASKED, *_SENT) if request.method == "POST" else _ASKED
        headers = {name: request.headers[name] for name in asked if name in request.headers}
        if complete:
            headers["accept-encoding"] = "identity"
        headers.setdefault("accept-encoding", "identity")
        body = _Body(request) if request.method == "POST" else None
        answer = await self._answer(request.method, url, headers, body)
        if answer.status == 401 and self._credentials.drop(headers.get("Authorization", "")) and body is None:
            answer.close()
            answer = await self._answer(request.method, url, headers, body)
        try:
            return await self._relayed(answer, complete=complete)
        except BaseException:
            answer.close()
            raise

    async def _answer(
        self, method: str, url: URL, headers: dict[str, str], body: _Body | None
    ) -> aiohttp.ClientResponse:
        """The archive's answer to a request, which is signed here."""
        if signature := await self._signature():
            headers["Authorization"] = signature
        try:
            return await self._connections().request(method, url, headers=headers, data=body, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError) as error:
            if body is not None and body.problem is not None:
                raise body.problem from None
            if isinstance(error, TimeoutError):
                raise ArchiveSlow("the DICOM archive did not answer in time") from None
            raise ArchiveAway(f"the DICOM archive does not answer ({type(error).__name__})") from None

    async def _signature(self) -> str:
        """The Authorization header. May fetch a token first, in a thread."""
        fetched = self._archive.token_url is not None
        return await asyncio.to_thread(self._credentials.header) if fetched else self._credentials.header()

    async def _relayed(self, answer: aiohttp.ClientResponse, *, complete: bool) -> Response:
        if answer.status in (401, 403):
            raise ArchiveAway(
                f"the DICOM archive denies this server access ({answer.status}): check the credentials in [dicomweb]"
            )
        if 300 <= answer.status < 400 and answer.status != 304:
            raise ArchiveAway(
                f"the DICOM archive answered with a redirect ({answer.status}); it is not followed: check the address"
            )
        if (answer.content_length or 0) > self._cap:
            raise TooLarge(f"the DICOM archive's response has more than {self._cap} bytes (max_volume): request less")
        large = answer.content_length is None or answer.content_length > _SMALL
        if answer.status == 304 or (large and not complete):
            return _Relayed(answer, self._cap)
        try:  # in one piece: each piece of a stream costs milliseconds on the way to the client
            return Response(await _read(answer, self._cap), answer.status, _passed(answer))
        except TimeoutError:
            raise ArchiveSlow(
                "the DICOM archive stopped sending in mid-transfer: try again, or raise dicomweb.timeout"
            ) from None
        except aiohttp.ClientError as error:
            raise ArchiveAway(
                f"the connection to the DICOM archive broke off ({type(error).__name__}): try again later"
            ) from None

    def _url(self, path: str, query: bytes, *, post: bool) -> URL:
        service, _, rest = path.partition("/")
        kind: Literal["qido", "wado", "stow"] = "wado"
        if service in ("qido", "wado", "stow"):
            kind, path = service, rest  # type: ignore[assignment]
        if kind == "qido" and path.endswith("/metadata"):
            kind = "wado"
        pieces = path.rstrip("/").split("/")
        odd = any(piece in ("", ".", "..") or not piece.isprintable() or "\\" in piece for piece in pieces)
        if odd or pieces[0] not in _RESOURCES or (post and (pieces[0] != "studies" or len(pieces) > 2)):
            raise BadRequest("not a DICOMweb path: use `studies/…`, and send instances to `studies`")
        address = self._archive.base(kind) + "/" + "/".join(quote(piece, safe=",") for piece in pieces)
        return URL(address + ("?" + query.decode("latin-1") if query else ""), encoded=True)

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._archive.timeout),
                skip_auto_headers=("user-agent", "content-type"),
            )
        return self._session


def archive_of(request: Request) -> Archive:
    """Connections to the archive behind this server."""
    archive: Archive = request.app.state.archive
    return archive


Behind = Annotated[Archive, Depends(archive_of)]


class _Body:
    """Streams a request's body; `problem` is the error that it broke off with."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.problem: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._request.stream():
                yield piece
        except Exception as error:
            self.problem = error
            raise


def _passed(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}


async def _read(answer: aiohttp.ClientResponse, cap: int) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE):
        body += piece
        if len(body) > cap:
            raise TooLarge("the archive's response has more than max_volume bytes")
    return bytes(body)


class _Relayed(StreamingResponse):
    """Streams the archive's response. If it breaks off, so does this one: it never looks complete."""

    def __init__(self, answer: aiohttp.ClientResponse, cap: int) -> None:
        self._answer = answer
        super().__init__(self._pieces(cap), status_code=answer.status, headers=_passed(answer))

    async def _pieces(self, cap: int) -> AsyncIterator[bytes]:
        left = cap
        async for piece in self._answer.content.iter_chunked(_PIECE):
            left -= len(piece)
            if left < 0:
                raise TooLarge("the archive's response has more than max_volume bytes")
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, and release the connection however that ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


@router.get(Route.PROXY, response_class=Response)
async def ask(path: str, request: Request, archive: Behind, services: Service, user: AsUser) -> Response:
    """QIDO-RS and WADO-RS of the archive: `qido/studies?…`, `wado/studies/…`. A series that holds several volumes
    appears as one for each, once it was opened."""
    resource = Resource(path)
    part = resource.is_part or (resource.lists_instances and await shares_its_series(services, resource.image_id))
    if not part and not resource.lists_series:
        return await archive.relay(request, path)
    query, asked = own_query(request.scope["query_string"])
    changes = resource.lists_series or resource.lists_instances
    answer = await archive.relay(request, resource.path, query=query, complete=changes)
    if not changes or answer.status_code != 200 or not answer.headers.get("content-type", "").endswith("json"):
        return answer
    listed = decoded(bytes(answer.body))
    if resource.lists_series:
        listed = await with_parts(services, listed, asked)
    else:
        listed = await instances_of(services, listed, resource.image_id)
    return Response(encoded(listed), media_type=answer.headers["content-type"])


@router.post(Route.PROXY, response_class=Response)
async def store(path: str, request: Request, archive: Behind, services: Service, user: AsAnnotator) -> Response:
    """STOW-RS of the archive: `stow/studies`, or `wado/studies` as OHIF sends it. New series are listed soon after."""
    answer = await archive.relay(request, path)
    if answer.status_code < 300:
        answer.background = BackgroundTask(services.datastore.refresh)
    return answer
