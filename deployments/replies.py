"""Responses that are not JSON: streamed files, and the two parts of an inference."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from rayapp.errors import NotFound

OCTETS = "application/octet-stream"
FILE: dict[int | str, dict[str, Any]] = {200: {"description": "The file, as an attachment.", "content": {OCTETS: {}}}}
_PIECE = 1 << 20


class FileReply(Response):
    """Streams an open file with the length that it had on opening; a label saved meanwhile cannot mix into it."""

    def __init__(self, file: BinaryIO, *, name: str | None, media_type: str) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        headers = {"Content-Length": str(self._left)}
        if name is not None:
            headers["Content-Disposition"] = disposition("attachment", name)
        super().__init__(media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._left > 0:
                piece = await asyncio.to_thread(self._file.read, min(_PIECE, self._left))
                if not piece:
                    raise OSError("the file became shorter while it was sent")
                self._left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._file.close()


async def file_reply(path: Path, *, name: str | None, media_type: str = OCTETS, remove: bool = False) -> FileReply:
    """Respond with a file.

    Args:
        path: the file.
        name: sends it as an attachment of that name; None shows it inline.
        media_type: of the file.
        remove: unlink the file at once; the open file is still sent.

    Raises:
        NotFound: there is no such file (any more).
    """

    def opened() -> FileReply:
        reply = FileReply(path.open("rb"), name=name, media_type=media_type)
        if remove:
            path.unlink()  # The open file stays readable, and nothing is left whatever happens now.
        return reply

    try:
        return await asyncio.to_thread(opened)
    except FileNotFoundError:
        raise NotFound("the file no longer exists: it was removed just now") from None


def disposition(kind: str, name: str) -> str:
    """A Content-Disposition header with a file name; other than plain ASCII is encoded as in RFC 5987."""
    quoted = quote(name)
    return f'{kind}; filename="{name}"' if quoted == name else f"{kind}; filename*=utf-8''{quoted}"


def inference_parts(params: Mapping[str, Any], body: bytes, filename: str) -> Response:
    """Respond with `params` and the mask as `multipart/form-data`, with a Content-Length, which clients need."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(dict(params), separators=(',', ':'))}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'
        f"Content-Type: {OCTETS}\r\n\r\n"
    )
    content = b"".join((head.encode(), body, f"\r\n--{boundary}--\r\n".encode()))
    return Response(content, media_type=f"multipart/form-data; boundary={boundary}")
