"""Forms and JSON bodies, read after the caller's role was checked.

Files are streamed to disk; only short text is held in memory. 3D Slicer sends its whole local path as a file's name and
a newline after the last boundary; OHIF sends a Blob, which has a file name even where it is text.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from deployments.guards import MAX_TEXT
from rayapp.errors import BadRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # It warns of the newline after the last boundary.

Stage = Callable[[str], Awaitable[Path]]
"""Maps a client's file name (without folders) to the new path that the file is written to; may refuse the name."""

_FLUSH = 1 << 20
MAX_PARTS = 20_001


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An uploaded file on disk; `name` is the client's file name without folders."""

    path: Path
    name: str


@dataclass
class Form:
    """A parsed form: texts by field name, and files in order of arrival."""

    texts: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, Upload]] = field(default_factory=list)

    def file(self, name: str) -> Upload | None:
        """The field's file, None if none was sent."""
        return next((upload for key, upload in self.files if key == name), None)

    def needed(self, name: str) -> Upload:
        """The field's file. Raises RequestValidationError (422) if none was sent."""
        upload = self.file(name)
        if upload is None:
            raise missing(name)
        return upload

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a text field, {} if the field was not sent. Raises BadRequest."""
        return json_object(self.texts.get(name, ""), name)


def missing(name: str) -> RequestValidationError:
    """The error (422) for a required field that is missing or is not a file."""
    return RequestValidationError(
        [
            {
                "type": "missing",
                "loc": ("body", name),
                "msg": "Field required: send a file, with a file name",
                "input": None,
            }
        ]
    )


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: empty text is {}.
        what: names the text in the error.

    Raises:
        BadRequest: it is not JSON, not an object, or holds values that strict JSON lacks (NaN, 1e999).
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
        # What cannot be written again as strict JSON (NaN, 1e999, half a surrogate pair) could not be stored.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise BadRequest(f"{what} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object {{…}}, not {type(value).__name__}")
    return value


async def read_json(request: Request) -> dict[str, Any]:
    """Parse the body as a JSON object; an empty body is {}. Raises BadRequest."""
    return json_object(await request.body(), "the body")


@asynccontextmanager
async def read_form(
    request: Request, *, texts: Sequence[str] = (), files: Sequence[str] = (), stage: Stage | None = None
) -> AsyncIterator[Form]:
    """Parse the form in the body; its files exist until the block ends.

    Args:
        request: its body must not have been read yet.
        texts: text fields to read; other fields are skipped.
        files: file fields to read.
        stage: chooses the path of each file.

    Raises:
        BadRequest: the body is not a form, or is cut off.
        TooLarge: a text has more than `MAX_TEXT` bytes, or there are too many parts.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    form = Form()
    try:
        if kind == b"multipart/form-data":
            await _Reader(form, options.get(b"boundary", b""), texts=texts, files=files, stage=stage).read(request)
        elif kind == b"application/x-www-form-urlencoded":
            pairs = parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True)
            form.texts.update({name: text for name, text in pairs if name in texts})
        elif await request.body():
            raise BadRequest("send the body as multipart/form-data (or urlencoded, where it has no files)")
        yield form
    finally:
        for _, upload in form.files:
            await asyncio.to_thread(upload.path.unlink, missing_ok=True)


class _Reader:
    """Feeds the body to the parser and writes its files. The parser's callbacks only queue data; disk work follows."""

    def __init__(
        self, form: Form, boundary: bytes, *, texts: Sequence[str], files: Sequence[str], stage: Stage | None
    ) -> None:
        if not boundary:
            raise BadRequest("the multipart body's Content-Type names no boundary")
        self._form = form
        self._texts, self._files, self._stage = texts, files, stage
        self._noted: list[tuple[str, bytes]] = []
        self._header = [b"", b""]
        self._disposition = b""
        self._parts = 0
        self._ended = False
        self._text: tuple[str, bytearray] | None = None
        self._file: BinaryIO | None = None
        self._parser = self._parser_of(boundary)

    def _parser_of(self, boundary: bytes) -> MultipartParser:
        note = self._noted.append
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part,
            "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": lambda: note(("open", self._disposition)),
            "on_part_data": lambda data, start, end: note(("data", data[start:end])),
            "on_part_end": lambda: note(("close", b"")),
            "on_end": self._on_end,
        }
        try:
            return MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(error) from None

    def _on_part(self) -> None:
        self._disposition = b""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"the form has more than {MAX_PARTS} parts")

    def _on_header(self, at: int, data: bytes) -> None:
        self._header[at] += data

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _on_end(self) -> None:
        self._ended = True

    async def read(self, request: Request) -> None:
        held = 0
        try:
            async for chunk in request.stream():
                try:
                    self._parser.write(chunk)
                except FormParserError as error:
                    raise _malformed(error) from None
                held += len(chunk)
                if held >= _FLUSH or self._file is None:
                    await self._drain()
                    held = 0
            await self._drain()
        finally:
            if self._file is not None:
                self._file.close()
        if not self._ended:
            raise BadRequest("the multipart body is cut off before its last boundary: send it again")

    async def _drain(self) -> None:
        noted = self._noted.copy()
        self._noted.clear()
        pending: list[bytes] = []
        for what, data in noted:
            if what == "data" and self._file is not None:
                pending.append(data)
                continue
            if pending:
                await self._write(pending)
                pending = []
            if what == "open":
                await self._open(data)
            elif what == "data" and self._text is not None:
                self._text[1].extend(data)
                if len(self._text[1]) > MAX_TEXT:
                    raise TooLarge(f"field {self._text[0]!r} is over {MAX_TEXT} bytes")
            elif what == "close":
                self._close()
        if pending:
            await self._write(pending)

    async def _open(self, disposition: bytes) -> None:
        _, options = parse_options_header(disposition.decode("latin-1"))
        name = _text_of(options.get(b"name", b""))
        filename = options.get(b"filename")
        if name in self._texts:  # a Blob has a file name too
            self._text = (name, bytearray())
        elif name in self._files and filename and self._stage is not None:
            last = _text_of(filename).replace("\\", "/").rpartition("/")[2]
            path = await self._stage(last)
            self._file = await asyncio.to_thread(path.open, "wb")
            self._form.files.append((name, Upload(path=path, name=last)))

    async def _write(self, pieces: list[bytes]) -> None:
        assert self._file is not None
        await asyncio.to_thread(self._file.write, b"".join(pieces))

    def _close(self) -> None:
        if self._text is not None:
            name, data = self._text
            self._form.texts[name] = _text_of(bytes(data))
        if self._file is not None:
            self._file.close()
        self._text = self._file = None


def _malformed(error: FormParserError) -> BadRequest:
    return BadRequest(f"the multipart body is malformed: {error}")


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def describe_json(description: str) -> dict[str, Any]:
    """`openapi_extra` of a route that reads an optional JSON object."""
    schema = {"type": "object", "additionalProperties": True, "description": description}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


def describe_form(
    *, texts: dict[str, str], files: dict[str, str] | None = None, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a form, with descriptions of its fields."""
    properties = {name: {"type": "string", "description": text} for name, text in texts.items()}
    for name, text in (files or {}).items():
        binary = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
        properties[name] = {**binary, "description": text}
    schema = {"type": "object", "properties": properties, "required": list(needed)}
    kinds = ["multipart/form-data"] if files else ["application/x-www-form-urlencoded", "multipart/form-data"]
    return {"requestBody": {"required": bool(needed), "content": {kind: {"schema": schema} for kind in kinds}}}
